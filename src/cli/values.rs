//! Values of options: reading them, and saying what is wrong with one.

use std::time::Duration;

use crate::cli::UsageError;
use crate::cli::text::{quote, split, unescape};
use crate::daemon::request::MountRequest;
use crate::fuse::owners::{Ids, Range};
use crate::union::options::{AsideKey, Format};

/// A value that is there, with what is needed to complain about it.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    /// What stands after the first `=`, never empty.
    pub value: &'a [u8],
    /// The whole option, for messages.
    pub text: &'a [u8],
    /// What the value ought to look like.
    pub form: &'static str,
}

impl Given<'_> {
    fn bad(&self, what: &str) -> UsageError {
        UsageError::new(format!("option {}: {what}", quote(self.text)))
    }

    /// Reads the value; `None` means that it is not of the form the table says.
    pub(super) fn read<T>(self, read: impl Fn(&[u8]) -> Option<T>) -> Result<T, UsageError> {
        read(self.value).ok_or_else(|| self.bad(&format!("the value must be {}", self.form)))
    }

    /// The last one typed counts.
    pub(super) fn set<T>(self, slot: &mut Option<T>, read: impl Fn(&[u8]) -> Option<T>) -> Result<(), UsageError> {
        *slot = Some(self.read(read)?);
        Ok(())
    }

    /// Two of them cannot both be meant.
    pub(super) fn once<T>(
        self,
        slot: &mut Option<T>,
        read: impl Fn(&[u8]) -> Result<T, UsageError>,
    ) -> Result<(), UsageError> {
        if slot.is_some() {
            return Err(self.bad("given twice"));
        }
        *slot = Some(read(self.value)?);
        Ok(())
    }

    pub(super) fn only(self, word: &[u8], reason: &str) -> Result<(), UsageError> {
        if self.value == word { Ok(()) } else { Err(self.bad(reason)) }
    }

    pub(super) fn all_timeouts(self, request: &mut MountRequest) -> Result<(), UsageError> {
        self.set(&mut request.entry_timeout, seconds)?;
        self.set(&mut request.attr_timeout, seconds)?;
        self.set(&mut request.negative_timeout, seconds)
    }

    /// `[:]STORED:SHOWN:LENGTH...`; the colon in front is podman's.
    pub(super) fn mapping(self, ids: &mut Ids) -> Result<(), UsageError> {
        ids.ranges = self.read(|value| {
            let text = value.strip_prefix(b":").unwrap_or(value);
            let numbers: Option<Vec<u32>> = split(text, b':').into_iter().map(id).collect();
            let (triples, rest) = numbers.as_ref()?.as_chunks::<3>();
            let range = |&[stored, shown, length]: &[u32; 3]| {
                // The last id is no id: it says "leave it as it is".
                let fits = |first: u32| first.checked_add(length).is_some();
                (length > 0 && fits(stored) && fits(shown)).then_some(Range { stored, shown, length })
            };
            if rest.is_empty() { triples.iter().map(range).collect() } else { None }
        })?;
        Ok(())
    }
}

pub(super) fn utf8(value: &[u8]) -> Option<String> {
    String::from_utf8(unescape(value)).ok()
}

pub(super) fn number(value: &[u8], least: u64, most: u64) -> Option<u64> {
    let number = std::str::from_utf8(value).ok()?.parse().ok()?;
    (least..=most).contains(&number).then_some(number)
}

/// A user or group.
pub(super) fn id(value: &[u8]) -> Option<u32> {
    number(value, 0, u64::from(u32::MAX) - 1)?.try_into().ok()
}

/// Each thread has a buffer of 16 MiB in the address space: more than a few hundred are a mistake.
pub(super) fn threads(value: &[u8]) -> Option<usize> {
    number(value, 1, 256)?.try_into().ok()
}

/// `1`, `0.5`, `1e9`: as libfuse reads them.
pub(super) fn seconds(value: &[u8]) -> Option<Duration> {
    Duration::try_from_secs_f64(std::str::from_utf8(value).ok()?.parse().ok()?).ok()
}

/// Of something that is waited for: more than nothing, a year at most.
pub(super) fn bounded_seconds(value: &[u8]) -> Option<Duration> {
    seconds(value).filter(|wait| !wait.is_zero() && *wait <= Duration::from_secs(365 * 86_400))
}

pub(super) fn format(value: &[u8]) -> Option<Format> {
    Format::ALL.iter().find(|(word, _)| word.as_bytes() == value).map(|&(_, format)| format)
}

/// `auto` or `off`: whether it is off.
pub(super) fn is_off(value: &[u8]) -> Option<bool> {
    match value {
        b"auto" => Some(false),
        b"off" => Some(true),
        _ => None,
    }
}

pub(super) fn on_off(value: &[u8]) -> Option<bool> {
    match value {
        b"on" => Some(true),
        b"off" => Some(false),
        _ => None,
    }
}

pub(super) fn zero_one(value: &[u8]) -> Option<bool> {
    match value {
        b"1" => Some(true),
        b"0" => Some(false),
        _ => None,
    }
}

/// fuse-overlayfs's `xattr_permissions`.
pub(super) fn aside(value: &[u8]) -> Option<Option<AsideKey>> {
    match value {
        b"0" => Some(None),
        b"1" => Some(Some(AsideKey::Privileged)),
        b"2" => Some(Some(AsideKey::User)),
        _ => None,
    }
}

/// overlayfs: `follow` and `nofollow` make no redirects.
pub(super) fn redirect_dir(value: &[u8]) -> Option<bool> {
    match value {
        b"on" => Some(true),
        b"off" | b"follow" | b"nofollow" => Some(false),
        _ => None,
    }
}
