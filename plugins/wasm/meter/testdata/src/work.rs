// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Work for tests and benchmarks of the metering rewriter. build.sh makes work_rust.wasm from it.
#![no_std]

use core::panic::PanicInfo;

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}

static mut HEAP: [u8; 1 << 16] = [0; 1 << 16];

trait Shape {
    fn area(&self) -> f64;
}
struct Square(f64);
struct Circle(f64);
impl Shape for Square {
    fn area(&self) -> f64 {
        self.0 * self.0
    }
}
impl Shape for Circle {
    fn area(&self) -> f64 {
        self.0 * self.0 * 3.14159
    }
}

/// Calls through a table of methods.
#[no_mangle]
pub extern "C" fn shapes(n: u32) -> f64 {
    let list: [&dyn Shape; 3] = [&Square(2.0), &Circle(1.5), &Square(0.5)];
    let mut sum = 0.0;
    for i in 0..n {
        sum += list[(i.wrapping_mul(7) % 3) as usize].area();
    }
    sum
}

/// A matrix product with floats.
#[no_mangle]
pub extern "C" fn matrix(n: u32) -> f64 {
    const N: usize = 24;
    let mut a = [[0.0f64; N]; N];
    let mut b = [[0.0f64; N]; N];
    for i in 0..N {
        for j in 0..N {
            a[i][j] = (i * j) as f64 / 7.0;
            b[i][j] = (i + j) as f64;
        }
    }
    let mut sum = 0.0;
    for _ in 0..n {
        let mut c = [[0.0f64; N]; N];
        for i in 0..N {
            for j in 0..N {
                let mut s = 0.0;
                for k in 0..N {
                    s += a[i][k] * b[k][j];
                }
                c[i][j] = s;
            }
        }
        sum += c[3][5];
        a[1][1] = sum / 1e9;
    }
    sum
}

/// Formats and parses numbers.
#[no_mangle]
pub extern "C" fn numbers(n: u32) -> u64 {
    let heap = unsafe { &mut *core::ptr::addr_of_mut!(HEAP) };
    let mut sum = 0u64;
    for i in 0..n {
        let mut v = (i as u64).wrapping_mul(0x9e3779b97f4a7c15);
        let mut len = 0;
        while v > 0 {
            heap[len] = b'0' + (v % 10) as u8;
            v /= 10;
            len += 1;
        }
        heap[..len].reverse();
        if let Ok(s) = core::str::from_utf8(&heap[..len]) {
            if let Ok(v) = s.parse::<u64>() {
                sum = sum.wrapping_add(v);
            }
        }
    }
    sum
}

fn ackermann(m: u32, n: u32) -> u32 {
    match (m, n) {
        (0, n) => n + 1,
        (m, 0) => ackermann(m - 1, 1),
        (m, n) => ackermann(m - 1, ackermann(m, n - 1)),
    }
}

/// Deep recursion.
#[no_mangle]
pub extern "C" fn deep(n: u32) -> u32 {
    ackermann(2, n)
}
