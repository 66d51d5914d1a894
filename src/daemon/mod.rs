//! Process life: from a request to a served mount, and its end.

pub mod request;
