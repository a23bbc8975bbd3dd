// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//! The author's side of Promweave's WASM ABI (sdk/guest/ABI.md), without the standard
//! library and without dependencies.
//!
//! A filter implements [`Filter`] and is exported with [`export_filter!`], a store backend
//! implements [`Backend`] and is exported with [`export_backend!`]. Examples are beside
//! this crate.
//!
//! A module serves one call at a time and has one thread. `alloc` is there: `Vec`,
//! `String` and `format!` work as usual (`format!` costs about 10 KB). A panic is logged
//! and ends the instance; the host makes another.

#![no_std]

pub extern crate alloc;

mod backend;
mod filter;
mod frame;
mod host;
pub mod json;
mod memory;
pub mod wire;

pub use backend::*;
pub use filter::*;
pub use frame::*;
pub use host::*;
pub use memory::{describe_permissions, Once};

/// The minor version of the contract that this crate implements.
pub const MINOR: u32 = 0;

#[doc(hidden)]
pub mod internal {
    pub use crate::memory::{alloc, finish, input};
}
