// SPDX-License-Identifier: Apache-2.0

//! Virtual machines: QEMU boots Debian's stock kernel with an initramfs of our programs, and a
//! script in it has the steps. Emulated, so that no KVM is needed.

mod device;
mod fetch;
mod guests;
mod image;
mod installed;
mod kernels;
mod machine;
