// SPDX-License-Identifier: Apache-2.0

//! Real machines: QEMU boots Debian's stock kernel with an initramfs made of our programs, and a
//! script in it says what is tried. Emulated, so that no KVM is needed.

mod device;
mod fetch;
mod guests;
mod image;
mod kernels;
mod machine;
