//! Text as typed on a command line: splitting it, and the backslashes that keep it together.
//!
//! A backslash before `:` `,` `=` or `\` makes that byte part of a name. Splitting leaves escapes in place, so a text
//! can be split by one byte and its parts by another; `unescape` comes last, once.
//!
//! Bytes, not `str`: a path is any bytes but NUL.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Where `byte` stands without a backslash that escapes it.
pub(super) fn positions(text: &[u8], byte: u8) -> Vec<usize> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'\\' => at += 1,
            here if here == byte => found.push(at),
            _ => {}
        }
        at += 1;
    }
    found
}

/// Splits at each `separator` that is not escaped; escapes stay in the parts.
pub(super) fn split(text: &[u8], separator: u8) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut start = 0;
    for at in positions(text, separator) {
        parts.push(&text[start..at]);
        start = at + 1;
    }
    parts.push(&text[start..]);
    parts
}

/// Takes away each backslash that escapes one of `:` `,` `=` `\`; any other is a byte of the name.
pub(super) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        match rest.peek() {
            Some(&next @ (b':' | b',' | b'=' | b'\\')) if byte == b'\\' => {
                plain.push(next);
                rest.next();
            }
            _ => plain.push(byte),
        }
    }
    plain
}

/// `unescape`, as a path.
pub(super) fn path(text: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(text)).into()
}

/// The text as a message quotes it: as typed, but harmless to a terminal.
pub(super) fn quote(text: &[u8]) -> String {
    let mut quoted = String::from("'");
    for c in String::from_utf8_lossy(text).chars() {
        if c.is_control() { quoted.extend(c.escape_default()) } else { quoted.push(c) }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting() {
        let rows: [(&[u8], &[&[u8]]); 8] = [
            (b"", &[b""]),
            (b"a", &[b"a"]),
            (b"a:b", &[b"a", b"b"]),
            (b":a::", &[b"", b"a", b"", b""]),
            (br"a\:b:c", &[br"a\:b", b"c"]),
            (br"a\\:b", &[br"a\\", b"b"]),
            (br"a\\\:b", &[br"a\\\:b"]),
            (br"a\", &[br"a\"]),
        ];
        for (text, parts) in rows {
            assert_eq!(split(text, b':'), parts, "{}", quote(text));
        }
    }

    #[test]
    fn unescaping() {
        let rows: [(&[u8], &[u8]); 7] = [
            (br"a\:b\,c\=d\\e", br"a:b,c=d\e"),
            (br"\\:", br"\:"),
            (br"a\xb", br"a\xb"),
            (br"a\", br"a\"),
            (br"a\\", br"a\"),
            (b"\xff\\:\xfe", b"\xff:\xfe"),
            (b"", b""),
        ];
        for (text, plain) in rows {
            assert_eq!(unescape(text), plain, "{}", quote(text));
        }
    }

    #[test]
    fn quoting() {
        assert_eq!(quote(b"a b"), "'a b'");
        assert_eq!(quote(b"a\x1b[31m\n"), r"'a\u{1b}[31m\n'");
        assert_eq!(quote(b"\xff"), "'\u{fffd}'");
    }
}
