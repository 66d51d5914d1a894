//! The only `unsafe` of the crate: system calls that rustix lacks, each behind a safe function.
#![allow(unsafe_code)]

pub mod mount;
pub mod process;
