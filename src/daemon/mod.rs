//! Process life: from a request to a served mount, and its end.

mod attached;
mod auto_unmount;
mod clone;
mod door;
mod fusermount;
mod keeper;
mod launch;
mod limits;
mod lineage;
mod lock;
mod logger;
mod means;
mod mount;
mod mountpoint;
mod namespace;
mod overlap;
mod owners_aside;
pub mod remount;
pub mod request;
mod resolve;
mod sandbox;
mod signals;
pub mod start;
mod stdio;
mod table;
mod unmapped;
mod watch;
