//! What the tests of the engine share: one trait for anything that looks like a tree of files, and what to build and
//! compare such trees with.
//!
//! A scenario is written once against `Fs` and runs on the engine, on a mount, on the kernel's overlayfs and on a plain
//! directory. Invariant: nothing here knows how the engine works inside; it sees what the kernel would see.
#![allow(
    dead_code,
    unused_imports,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::missing_errors_doc
)]

pub mod dirfs;
pub mod enginefs;
pub mod fs;
pub mod ops;
pub mod snapshot;
pub mod stack;
pub mod table;
pub mod tree;

pub use dirfs::DirFs;
pub use enginefs::{Dcache, EngineFs};
pub use fs::{Fd, Fs, R, Stat, When, path, show};
pub use rustix::fs::{FileType, OFlags};
pub use rustix::io::Errno;
pub use snapshot::{Snapshot, Strict};
pub use stack::{Overlay, Stack, in_memory};
pub use tree::{Item, Tree};

/// Prints why a test does nothing here; where nothing may be skipped (the root job), it fails instead.
pub fn skip(reason: &str) {
    println!("SKIP: {reason}");
    eprintln!("SKIP: {reason}");
    assert!(std::env::var_os("COWFS_NO_SKIP").is_none(), "COWFS_NO_SKIP is set, yet: {reason}");
}

/// A number from the environment, for the length of a run.
pub fn env_number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs `case`; a panic inside becomes its error, so that one wrong case is not the end of a table.
pub fn guarded(case: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(case)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(format!("panic: {}", text.or(panic.downcast_ref::<&str>().map(|s| (*s).into())).unwrap_or_default()))
    })
}

/// Fails with the first of the wrong cases of a table, if there are any.
#[track_caller]
pub fn report(wrong: &[String], tried: usize) {
    let shown = &wrong[..wrong.len().min(env_number("COWFS_SHOW", 25) as usize)];
    assert!(wrong.is_empty(), "{} of {tried} cases are wrong:\n{}", wrong.len(), shown.join("\n"));
}

/// Whether branches can be built here; says so if not.
pub fn can_build() -> bool {
    if !is_root() {
        skip("owners, devices and trusted.* attributes of the branches need root");
    }
    is_root()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
