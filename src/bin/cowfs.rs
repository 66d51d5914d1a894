//! The program: parse, call, exit code.

use std::io::Write;
use std::process::ExitCode;

use cowfs::cli::{Command, USAGE_STATUS, help, parse, version};

fn main() -> ExitCode {
    match parse(std::env::args_os()) {
        Ok(Command::Mount(request)) => cowfs::daemon::start::run(*request),
        Ok(Command::Remount(request)) => cowfs::daemon::remount::run(&request),
        Ok(Command::Fake) => ExitCode::SUCCESS,
        Ok(Command::Help) => print(help()),
        Ok(Command::Version) => print(version()),
        Ok(Command::Completions(script)) => print(&script),
        Err(error) => {
            eprintln!("cowfs: {error}");
            ExitCode::from(USAGE_STATUS)
        }
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
