//! cowfs: a copy-on-write union filesystem in user space.
//!
//! Read-only branches under at most one writable branch are shown as one tree. What is changed in the tree is changed in
//! the writable branch only.
//!
//! ```text
//!     programs                       what they see: one tree
//!        |
//!   the kernel: VFS, FUSE            keeps names, attributes, pages; reads and writes passed files by itself
//!        |  /dev/fuse
//!      fuse/      fuser <-> engine   one match a request, no decision
//!        |
//!     union/      THE ENGINE         node -> which branches have it -> calls on directory descriptors
//!        |
//!      sys/       system calls that rustix lacks; the only `unsafe`
//!        |
//!   branches on disk                 upper (writable, with marks) over lower, lower, ...
//! ```
//!
//! # The rooms
//!
//! The order is total: a file uses only what stands above it (`tests/house.rs` looks at every `use crate::`).
//!
//! - [`sys`]: system calls behind safe functions.
//! - [`union`]: the engine; it knows no fuser, no command line, no reply object. From the ground up:
//!   - words: [`union::error`] [`union::name`] [`union::types`] [`union::options`];
//!   - [`union::fault`]: the hook that tests use to fail or die at the n-th change of a branch;
//!   - [`union::branch`]: every call on a directory of a branch, and the only place that changes names there;
//!   - [`union::stage`]: where objects are made ready before one step publishes them;
//!   - [`union::marks`]: whiteouts, opaque directories and the other marks, in four formats;
//!   - [`union::copyup`]: one object from a lower to the upper;
//!   - [`union::stack`], [`union::ino`], [`union::resolve`], [`union::listing`], [`union::merge`]: the branches in order, which
//!     number an object shows, what a name means, what a directory lists;
//!   - [`union::node`], [`union::table`], [`union::handle`], [`union::index`], [`union::gone`]: what is known of objects, open files and
//!     hard links;
//!   - [`union::engine`], [`union::ops`]: the whole, and its requests.
//! - [`fuse`]: the adapter between fuser and the engine, passthrough, the threads that serve.
//! - [`daemon`]: the life of the process, from a request to a served mount and its end.
//! - [`cli`]: command lines become a [`daemon::request::MountRequest`], or one line that says what is wrong.
//!
//! The program, `src/bin/cowfs.rs`, parses, calls, and gives the exit status. ARCHITECTURE.md has a sentence for every file,
//! and the reasons.
//!
//! # Words
//!
//! One word has one meaning, in code, messages and documents.
//!
//! | word | meaning |
//! |---|---|
//! | union | the tree that is shown |
//! | branch | a directory that the union is made of |
//! | stack | all branches in order, the top one first |
//! | upper | the writable branch, always on top; there is at most one |
//! | lower | a read-only branch |
//! | layer | the real directory that one branch adds to a directory of the union |
//! | top, bottom | the first and the last branch of the stack |
//! | real | in a branch, as in "real object", "real directory" |
//! | node | an object of the union that somebody knows: the kernel, an open file, or a node below it |
//! | entry | the answer to a look-up: a node and its attributes |
//! | handle | an open file or directory of the union; for files on disk: the kernel's file handle |
//! | caller | the user, group and umask that a request is made with |
//! | mark | anything a branch holds to say something about names: the next six |
//! | whiteout | "this name is deleted": hides it in the branches below |
//! | opaque | "nothing below": a directory that hides the directories of its name in the branches below |
//! | redirect | "my lower parts are there": left in a lower directory's copy when it is renamed |
//! | metacopy | "attributes only": a file whose data are a lower file's (written by the kernel's overlayfs) |
//! | origin | "copied from that object": keeps the inode number over copy-up and remount |
//! | impure | "holds copies": a listing of this directory must look at origins |
//! | format | how marks look on disk: overlay, oci, unionfs, unionfs-fuse |
//! | to hide | to leave a whiteout; to seal: to make a directory opaque; to uncover: to take a whiteout away |
//! | to copy up, a copy-up | to bring a lower object into the upper before it is changed |
//! | to raise, to lift | to bring a node into the upper with all directories above it; one step of that |
//! | stage | the directory in the private area where objects are made ready |
//! | to publish | to give an object its name in the upper, by one link or rename |
//! | private area | `.cowfs` in the upper, or `workdir=`: stage and index; never seen in the union |
//! | index | the second names of copies whose lower file has several names |
//! | identity | device and inode number of a real object |
//! | covered | shown as an empty directory: the mountpoint, or the root of another branch |
//! | to pass | to let the kernel read and write a real file by itself (passthrough) |
//! | cached | the opposite: data go through the daemon and the mount's own page cache |
//! | settled | only requests can change it, because it is the upper's |
//! | left behind | a node that only old descriptors lead to, because its file was passed and then copied up |
//! | to forget | the kernel gives back what it knew of a node |
//! | step | one change of a branch; tests stop at each |
pub mod sys;
pub mod union;

pub mod fuse;

pub mod daemon;

pub mod cli;
