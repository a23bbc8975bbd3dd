// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//! Memory of the module, and how arguments and results go through it.

use crate::wire::Writer;
use crate::Error;
use alloc::alloc::{GlobalAlloc, Layout};
use alloc::vec::Vec;
use core::cell::{Cell, UnsafeCell};

/// Blocks have sizes that are powers of two. Those that were freed wait in a list for
/// each size; memory is never given back, as WebAssembly has no way to.
struct Blocks {
    free: [Cell<usize>; 32],
    top: Cell<usize>,
}

// SAFETY: a module has one thread.
unsafe impl Sync for Blocks {}

#[allow(clippy::declare_interior_mutable_const)]
const NONE: Cell<usize> = Cell::new(0);

#[cfg_attr(target_arch = "wasm32", global_allocator)]
static BLOCKS: Blocks = Blocks { free: [NONE; 32], top: Cell::new(0) };

#[cfg(target_arch = "wasm32")]
extern "C" {
    static __heap_base: u8;
}

#[cfg(target_arch = "wasm32")]
fn heap() -> usize {
    // SAFETY: the address of what the linker defines is taken, nothing is read.
    unsafe { core::ptr::addr_of!(__heap_base) as usize }
}
#[cfg(not(target_arch = "wasm32"))]
fn heap() -> usize {
    0
}

#[cfg(target_arch = "wasm32")]
fn reserve(end: usize) -> bool {
    let have = core::arch::wasm32::memory_size(0) << 16;
    end <= have || core::arch::wasm32::memory_grow(0, ((end - have - 1) >> 16) + 1) != usize::MAX
}
#[cfg(not(target_arch = "wasm32"))]
fn reserve(_: usize) -> bool {
    false
}

/// The class of a layout: its block has 2^class bytes.
fn class(layout: &Layout) -> u32 {
    let size = layout.size().max(layout.align()).max(16);
    usize::BITS - (size - 1).leading_zeros()
}

// SAFETY: blocks are disjoint, at least as large as was asked, and aligned to 16 bytes,
// or to their size where more is asked.
unsafe impl GlobalAlloc for Blocks {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let class = class(&layout);
        if class > 30 {
            return core::ptr::null_mut();
        }
        let list = &self.free[class as usize];
        let first = list.get();
        if first != 0 && first & (layout.align() - 1) == 0 {
            list.set(*(first as *const usize));
            return first as *mut u8;
        }
        let align = layout.align().max(16);
        let from = (self.top.get().max(heap()) + align - 1) & !(align - 1);
        match from.checked_add(1 << class) {
            Some(end) if reserve(end) => {
                self.top.set(end);
                from as *mut u8
            }
            _ => core::ptr::null_mut(),
        }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        let list = &self.free[class(&layout) as usize];
        *(p as *mut usize) = list.get();
        list.set(p as usize);
    }

    #[inline(never)]
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let new = Layout::from_size_align_unchecked(size, layout.align());
        if class(&new) == class(&layout) {
            return p;
        }
        let to = self.alloc(new);
        if !to.is_null() {
            core::ptr::copy_nonoverlapping(p, to, layout.size().min(size));
            self.dealloc(p, layout);
        }
        to
    }
}

/// Says where a panic was, and ends the instance. The text of the panic is left out:
/// formatting it would be most of a small module.
#[cfg(all(target_arch = "wasm32", not(test)))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    let mut line = alloc::string::String::from("panic");
    if let Some(at) = info.location() {
        line.push_str(" at ");
        line.push_str(at.file());
        line.push(':');
        line.push_str(&crate::decimal(at.line() as i64));
    }
    crate::log(crate::Level::Error, &line);
    core::arch::wasm32::unreachable()
}

/// A static that is set once. For what [`crate::export_filter!`] makes.
pub struct Once<T>(UnsafeCell<Option<T>>);

// SAFETY: a module has one thread.
unsafe impl<T> Sync for Once<T> {}

impl<T> Once<T> {
    pub const fn new() -> Once<T> {
        Once(UnsafeCell::new(None))
    }
    pub fn get(&self) -> Option<&T> {
        // SAFETY: set is only called while there is no value to refer to.
        unsafe { (*self.0.get()).as_ref() }
    }
    /// Does nothing if there is a value.
    pub fn set(&self, v: T) {
        if self.get().is_none() {
            // SAFETY: nothing refers to the inside of None.
            unsafe { *self.0.get() = Some(v) }
        }
    }
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Once::new()
    }
}

/// Buffers that calls use again. 8 bytes an item, for the alignment.
struct Buffers {
    input: UnsafeCell<Vec<u64>>,
    output: UnsafeCell<Vec<u8>>,
}

// SAFETY: a module has one thread, and the host makes one call at a time.
unsafe impl Sync for Buffers {}

static BUFFERS: Buffers = Buffers { input: UnsafeCell::new(Vec::new()), output: UnsafeCell::new(Vec::new()) };

/// `promweave_alloc`.
pub fn alloc(n: u32) -> *mut u8 {
    // SAFETY: no call is under way.
    let v = unsafe { &mut *BUFFERS.input.get() };
    let words = (n as usize + 7) / 8 + 1;
    if v.capacity() < words {
        *v = Vec::new();
        if v.try_reserve_exact(words).is_err() {
            return core::ptr::null_mut();
        }
    }
    v.as_mut_ptr() as *mut u8
}

/// What the host has written for this call.
///
/// # Safety
/// Only the exports may call it, with their arguments, and use the result until they return.
pub unsafe fn input<'a>(p: *const u8, n: u32) -> &'a [u8] {
    let v = &*BUFFERS.input.get();
    if n == 0 || p != v.as_ptr() as *const u8 || n as usize > v.capacity() * 8 {
        return &[];
    }
    core::slice::from_raw_parts(p, n as usize)
}

/// What a call returns.
pub fn finish(result: Result<Vec<u8>, Error>) -> u64 {
    // SAFETY: the bytes that a former call returned are not used any more.
    let out = unsafe { &mut *BUFFERS.output.get() };
    let mut flag = 0;
    *out = match result {
        Ok(b) => b,
        Err(e) => {
            flag = 1 << 31;
            let mut w = Writer::new();
            w.string(1, e.kind);
            w.string(2, &e.message);
            w.bytes
        }
    };
    if out.is_empty() {
        return flag;
    }
    (out.as_ptr() as usize as u64) << 32 | flag | out.len() as u64
}

/// Writes the permissions of a Description.
pub fn describe_permissions(w: &mut Writer, permissions: &[&str]) {
    for p in permissions {
        w.item(7, p.as_bytes());
    }
}
