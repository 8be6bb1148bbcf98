// SPDX-License-Identifier: Apache-2.0

//! A device of `clat_tun::device` as one of smoltcp's, for a guest that is smoltcp.

use clat_tun::device::Device;
use smoltcp::phy::{self, DeviceCapabilities, Medium, RxToken, TxToken};

/// The program's side of a device, for smoltcp.
#[derive(Debug)]
pub(crate) struct Port(pub(crate) Device);

/// A frame that was read.
#[derive(Debug)]
pub(crate) struct Rx(Vec<u8>);

/// Where one is written.
#[derive(Debug)]
pub(crate) struct Tx<'a>(&'a Device);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        assert_eq!(self.0.write(&frame), Ok(len));
        result
    }
}

impl phy::Device for Port {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Rx, Tx<'_>)> {
        let mut frame = vec![0; 2000];
        let len = self.0.read(&mut frame).ok()?;
        frame.truncate(len);
        Some((Rx(frame), Tx(&self.0)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Tx<'_>> {
        Some(Tx(&self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        let tap = self.0.flags().tap;
        capabilities.medium = if tap { Medium::Ethernet } else { Medium::Ip };
        capabilities.max_transmission_unit = if tap { 1514 } else { 1500 };
        capabilities
    }
}
