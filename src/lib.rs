//! cowfs: a copy-on-write union filesystem in user space.
pub mod sys;
pub mod union;

pub mod fuse;

pub mod daemon;

pub mod cli;
