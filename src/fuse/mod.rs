//! The kernel boundary.

pub mod options;
