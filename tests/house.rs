//! The house keeps its order: who may use whom, how long a file and a function may be, where `unsafe` may stand, and that
//! no path of the machine is named where the union is served.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms from the ground up; each may use those before it. Within `union` the order of `UNION` holds.
const ROOMS: [&str; 6] = ["sys", "union", "fuse", "daemon", "control", "cli"];

/// The engine's files from the ground up. `engine` and `ops` share the top: requests are methods of the engine.
const UNION: [&str; 23] = [
    "error", "name", "types", "options", "fault", "branch", "stage", "marks", "copyup", "stack", "ino", "resolve",
    "gone", "listing", "merge", "node", "table", "handle", "index", "engine", "ops", "audit", "changes",
];

const FILE_LINES: usize = 550;
const FUNCTION_LINES: usize = 75;

struct Source {
    /// Below its package's `src`.
    path: PathBuf,
    /// Up to the tests at the end.
    code: String,
}

fn sources() -> Vec<Source> {
    let sources = sources_below("src");
    assert!(sources.len() > 5, "sources not found");
    sources
}

/// With those of the programs that only benchmarks use.
fn all_sources() -> Vec<Source> {
    ["src", "bench/driver/src", "bench/hollow/src"].into_iter().flat_map(sources_below).collect()
}

fn sources_below(place: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(place);
    let (mut todo, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
                sources.push(Source { path: path.strip_prefix(&root).unwrap().to_owned(), code });
            }
        }
    }
    assert!(sources.len() > 3, "sources not found");
    sources
}

/// Lines with their numbers, without comments and the text of string literals.
fn lines(code: &str) -> impl Iterator<Item = (usize, String)> {
    code.lines().enumerate().map(|(number, line)| {
        let (mut kept, mut inside, mut escaped) = (String::new(), false, false);
        for (at, letter) in line.char_indices() {
            if !inside && line[at..].starts_with("//") {
                break;
            }
            if letter == '"' && !escaped && !line[..at].ends_with('\'') {
                inside = !inside;
            }
            escaped = letter == '\\' && !escaped;
            if !inside {
                kept.push(letter);
            }
        }
        (number + 1, kept)
    })
}

fn position(list: &[&str], word: &str) -> Option<usize> {
    list.iter().position(|known| *known == word)
}

/// Where a file or the target of a `use` stands in the order: room, then place in the engine.
fn place(words: &[&str]) -> Option<(usize, usize)> {
    let room = position(&ROOMS, words.first()?)?;
    if words[0] != "union" {
        return Some((room, 0));
    }
    match words.get(1) {
        Some(word) => position(&UNION, word).map(|place| (room, place)).or(Some((room, UNION.len()))),
        None => Some((room, UNION.len())),
    }
}

fn words_of(path: &Path) -> Vec<String> {
    let words = path.with_extension("");
    words.iter().map(|word| word.to_str().unwrap().to_owned()).filter(|word| word != "mod").collect()
}

/// The targets of a `use crate::...`, with its braces spread out for one level.
fn targets(statement: &str) -> Vec<Vec<String>> {
    let split = |text: &str| -> Vec<String> {
        text.split("::").map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
    };
    match statement.split_once('{') {
        Some((head, tail)) => tail
            .trim_end_matches(['}', ';', ' '])
            .split(',')
            .map(|leaf| [split(head), split(leaf.split('{').next().unwrap_or(""))].concat())
            .filter(|words| !words.is_empty())
            .collect(),
        None => vec![split(statement.trim_end_matches(';'))],
    }
}

#[test]
fn a_file_uses_only_what_stands_above_it() {
    let mut wrong = Vec::new();
    for source in sources() {
        let own = words_of(&source.path);
        let own: Vec<_> = own.iter().map(String::as_str).collect();
        // The map of a room names everything in it; the programs stand last.
        if matches!(own[..], [] | ["lib"] | ["union"]) || own[0] == "bin" {
            continue;
        }
        let Some(here) = place(&own) else {
            wrong.push(format!("{}: this file has no place in the order of ROOMS", source.path.display()));
            continue;
        };
        if own[0] == "union" && here.1 == UNION.len() {
            wrong.push(format!("{}: this file has no place in the order of UNION", source.path.display()));
        }
        let text: String = lines(&source.code).map(|(_, line)| line + "\n").collect();
        for statement in text.split("crate::").skip(1) {
            let statement: String = statement.chars().take_while(|&c| c != ';').collect();
            let statement = if statement.contains('{') && statement.split('{').next().unwrap().ends_with("::") {
                statement
            } else {
                let path = |c: &char| c.is_alphanumeric() || matches!(c, ':' | '_');
                statement.chars().take_while(path).collect()
            };
            for target in targets(&statement) {
                let target: Vec<_> = target.iter().map(String::as_str).collect();
                let there = place(&target);
                let peers = |place: (usize, usize)| own[0] == "union" && place.1 == here.1;
                // `engine` and `ops` are one: requests are methods of the engine, spread over files.
                let top = |place: (usize, usize)| {
                    place.0 == 1 && UNION.get(place.1).is_some_and(|w| *w == "engine" || *w == "ops")
                };
                let fine = there.is_none_or(|there| {
                    there < here || there.0 == here.0 && own[0] != "union" || peers(there) || (top(there) && top(here))
                });
                // What the engine shows to those above it is re-exported by `union` itself.
                let face = here.0 > 1 && target.first() == Some(&"union");
                if !fine && !face {
                    wrong.push(format!("{}: uses crate::{}", source.path.display(), target.join("::")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "against the order:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_only_in_sys_and_says_why() {
    let mut wrong = Vec::new();
    for source in sources() {
        let raw: Vec<_> = source.code.lines().collect();
        for (number, line) in lines(&source.code) {
            let is_unsafe = line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
            if !is_unsafe || line.contains("unsafe_code") {
                continue;
            }
            let reasons = raw[number.saturating_sub(8)..number].iter().any(|line| line.contains("SAFETY"));
            if !source.path.starts_with("sys") || !reasons {
                wrong.push(format!("{}:{number}: {}", source.path.display(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe outside sys, or without its SAFETY line:\n{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_owns() {
    let wrong: Vec<_> = all_sources().into_iter().filter(|source| !source.code.starts_with("//!")).collect();
    let names: Vec<_> = wrong.iter().map(|source| source.path.display().to_string()).collect();
    assert!(wrong.is_empty(), "no `//!` at the top: {}", names.join(", "));
}

#[test]
fn files_and_functions_keep_their_budgets() {
    let mut wrong = Vec::new();
    for source in all_sources() {
        let count = source.code.lines().count();
        if count > FILE_LINES {
            wrong.push(format!("{}: {count} lines", source.path.display()));
        }
        // rustfmt puts the end of a function at the indentation of its beginning.
        let mut open: Option<(usize, usize, String)> = None;
        for (number, line) in source.code.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let words: Vec<_> = line.split_whitespace().take(5).collect();
            if open.is_none() && words.contains(&"fn") && !line.trim_start().starts_with("//") && !line.contains(';') {
                open = Some((number, indent, line.trim().to_owned()));
            }
            if let Some((start, depth, head)) = &open {
                if indent == *depth && line.trim() == "}" {
                    if number - start + 1 > FUNCTION_LINES {
                        wrong.push(format!("{}: {} lines: {head}", source.path.display(), number - start + 1));
                    }
                    open = None;
                } else if number == *start && line.trim_end().ends_with('}') {
                    open = None;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "over budget:\n{}", wrong.join("\n"));
}

/// Once the union is served, a path of the machine may lead back into it, and into a deadlock.
#[test]
fn no_path_of_the_machine_in_engine_and_adapter() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|s| s.path.starts_with("union") || s.path.starts_with("fuse")) {
        for (number, line) in lines(&source.code) {
            let banned = ["AT_FDCWD", "std::fs::", "std::env", "canonicalize", " File::open", "Path::new"];
            if banned.iter().any(|word| line.contains(word)) {
                wrong.push(format!("{}:{number}: {}", source.path.display(), line.trim()));
            }
        }
        for (number, line) in source.code.lines().enumerate() {
            let said = line.split("//").next().unwrap();
            if ["\"/", "c\"/", "b\"/"].iter().any(|start| {
                said.contains(&format!("{start}proc"))
                    || said.contains(&format!("{start}dev"))
                    || said.contains(&format!("{start}etc"))
                    || said.contains(&format!("{start}tmp"))
            }) {
                wrong.push(format!("{}:{}: {}", source.path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "names of places outside the branches:\n{}", wrong.join("\n"));
}
