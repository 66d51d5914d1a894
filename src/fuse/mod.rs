//! fuser on one side, the engine on the other: requests in, answers out, and no decision in between.
//!
//! Whatever is odd about the protocol or about fuser stays in here; `union/` never sees a type of fuser's.

pub mod adapter;
pub mod awake;
pub mod convert;
pub mod current;
mod ioctl;
pub mod near;
pub mod notify;
mod offer;
pub mod opening;
pub mod owners;
pub mod passthrough;
pub mod pulse;
pub mod reply;
pub mod session;
mod space;
mod wanted;
pub mod worker;

pub use adapter::Adapter;
pub use current::{Current, Exchange};
pub use reply::Settings;
