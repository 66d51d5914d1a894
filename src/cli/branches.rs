//! Lists of branches: `PATH[=RO|RW][:PATH...]`, and the plain `PATH:PATH` of `lowerdir=`.
//!
//! Decides the order of the stack: the writable branch is on top wherever it is listed, because a copy-up can only go
//! to a branch above; read-only ones keep their order, first listed on top.

use std::path::PathBuf;

use crate::cli::UsageError;
use crate::cli::text::{path, positions, quote, split};
use crate::daemon::request::BranchArg;

/// Reads `PATH[=MODE][:PATH[=MODE]...]` into stack order. Empty elements are skipped, as unionfs-fuse does.
pub(super) fn branches(list: &[u8]) -> Result<Vec<BranchArg>, UsageError> {
    let read: Result<Vec<_>, _> = split(list, b':').into_iter().filter(|one| !one.is_empty()).map(branch).collect();
    let (upper, lower): (Vec<_>, Vec<_>) = read?.into_iter().partition(|branch| branch.writable);
    if let [first, second, ..] = &upper[..] {
        return Err(UsageError::new(format!(
            "two writable branches, {} and {}: a union has one, where all changes go; mark the others =RO",
            quote(first.path.as_os_str().as_encoded_bytes()),
            quote(second.path.as_os_str().as_encoded_bytes()),
        )));
    }
    if upper.is_empty() && lower.is_empty() {
        return Err(UsageError::new(format!("no branch in {}: expected PATH[=RO|RW][:PATH...]", quote(list))));
    }
    Ok(upper.into_iter().chain(lower).collect())
}

/// Reads one `PATH[=RO|RW|RO+wh]`; no mode means RO. The mode stands after the last `=` that is not escaped.
fn branch(text: &[u8]) -> Result<BranchArg, UsageError> {
    let (name, mode) = match positions(text, b'=').last() {
        Some(&at) => (&text[..at], &text[at + 1..]),
        None => (text, &b"RO"[..]),
    };
    let (writable, oci_whiteouts) = match &mode.to_ascii_lowercase()[..] {
        b"ro" => (false, false),
        b"rw" => (true, false),
        b"ro+wh" => (false, true),
        b"rw+wh" => {
            return Err(UsageError::new(format!(
                "branch {}: +wh is for a read-only branch; for the writable one say -o whiteout=oci",
                quote(text)
            )));
        }
        _ => {
            return Err(UsageError::new(format!(
                "branch {}: after '=' comes RO, RW or RO+wh, not {}; an '=' in a path is written '\\='",
                quote(text),
                quote(mode)
            )));
        }
    };
    if name.is_empty() {
        return Err(UsageError::new(format!("branch {} has no path", quote(text))));
    }
    Ok(BranchArg { path: path(name), writable, oci_whiteouts })
}

/// Reads the `PATH[:PATH...]` of `lowerdir=`, the top one first.
pub(super) fn lower_dirs(list: &[u8]) -> Result<Vec<PathBuf>, UsageError> {
    let parts = split(list, b':');
    if parts.iter().any(|one| one.is_empty()) {
        return Err(UsageError::new(format!(
            "lowerdir={}: an empty path (data-only layers, '::', are not supported; a colon in a path is written '\\:')",
            quote(list)
        )));
    }
    Ok(parts.into_iter().map(path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(branches: &[BranchArg]) -> String {
        let one = |b: &BranchArg| {
            let mode = match (b.writable, b.oci_whiteouts) {
                (true, _) => "RW",
                (false, true) => "wh",
                (false, false) => "RO",
            };
            format!("{} {mode}", b.path.display())
        };
        branches.iter().map(one).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn lists() {
        for (list, expected) in [
            ("/a", "/a RO"),
            ("/precise=RO:/cow/u1=RW", "/cow/u1 RW|/precise RO"),
            ("/cow/u1=RW:/precise=RO", "/cow/u1 RW|/precise RO"),
            ("/a:/b=rw:/c=Ro:/d", "/b RW|/a RO|/c RO|/d RO"),
            ("/a=RO+wh:/b=ro+WH", "/a wh|/b wh"),
            (":/a::/b:", "/a RO|/b RO"),
            (r"/a\:b\,c\=d\\e=RW", r"/a:b,c=d\e RW"),
            (r"/a\=RW", "/a=RW RO"),
            ("/a=b=RO", "/a=b RO"),
            ("a/b:../c", "a/b RO|../c RO"),
            ("/a,b=RO:/c d", "/a,b RO|/c d RO"),
            ("/", "/ RO"),
        ] {
            assert_eq!(branches(list.as_bytes()).map(|b| shown(&b)), Ok(expected.into()), "{list}");
        }
    }

    #[test]
    fn bad_lists() {
        for (list, expected) in [
            ("", "no branch in '': expected PATH[=RO|RW][:PATH...]"),
            ("::", "no branch in '::': expected PATH[=RO|RW][:PATH...]"),
            ("/a=RX", "branch '/a=RX': after '=' comes RO, RW or RO+wh, not 'RX'; an '=' in a path is written '\\='"),
            ("/a=:/b", "branch '/a=': after '=' comes RO, RW or RO+wh, not ''; an '=' in a path is written '\\='"),
            ("/b:=RW", "branch '=RW' has no path"),
            ("/a=RW+wh", "branch '/a=RW+wh': +wh is for a read-only branch; for the writable one say -o whiteout=oci"),
            (
                "/a=RW:/b:/c=rw:/d=RW",
                "two writable branches, '/a' and '/c': a union has one, where all changes go; mark the others =RO",
            ),
        ] {
            assert_eq!(branches(list.as_bytes()).map_err(|e| e.to_string()), Err(expected.into()), "{list}");
        }
    }

    #[test]
    fn lower_directories() {
        let read = |list: &str| lower_dirs(list.as_bytes()).map_err(|e| e.to_string());
        assert_eq!(read(r"/a:b/c:/d\:e=RO"), Ok(vec!["/a".into(), "b/c".into(), "/d:e=RO".into()]));
        for bad in ["", "/a::/b", ":/a", "/a:"] {
            assert!(read(bad).is_err_and(|e| e.contains("an empty path")), "{bad}");
        }
    }
}
