// SPDX-License-Identifier: Apache-2.0

//! TCP both ways.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use anyhow::{ensure, Context, Result};
use clat_tests::{Clat, Lab, SERVER4, SERVER6};

use crate::{pattern, PATIENCE};

/// Sends `len` bytes from `from` to `to` and compares what arrives.
pub(crate) fn transfer(mut from: TcpStream, mut to: TcpStream, len: usize) -> Result<()> {
    from.set_write_timeout(Some(PATIENCE))?;
    to.set_read_timeout(Some(PATIENCE))?;
    let data = pattern(len);
    let expected = data.clone();
    let sender = thread::spawn(move || -> Result<()> {
        from.write_all(&data).context("sender")?;
        Ok(())
    });
    let mut got = Vec::with_capacity(len);
    let read = to.read_to_end(&mut got).context("receiver");
    sender.join().expect("sender")?;
    read?;
    ensure!(got == expected, "{} of {len} bytes arrived, or other ones", got.len());
    Ok(())
}

fn connection(lab: &Lab, port: u16) -> Result<(TcpStream, TcpStream)> {
    let listener: TcpListener = Lab::listen(&lab.internet, (SERVER6, port))?;
    let client = Lab::connect(&lab.phone, (SERVER4, port))?;
    Ok((client, listener.accept()?.0))
}

pub(crate) fn tcp_both_ways(lab: &Lab, clat: &Clat<'_>) -> Result<()> {
    let (client, server) = connection(lab, 80)?;
    assert_eq!(client.local_addr()?.ip(), clat.v4);
    assert_eq!(server.peer_addr()?.ip(), clat.v6);
    transfer(client, server, 8 << 20)?;
    let (client, server) = connection(lab, 80)?;
    transfer(server, client, 8 << 20)
}

pub(crate) fn small_hop_tcp(lab: &Lab, _: &Clat<'_>) -> Result<()> {
    lab.narrow(1300)?;
    let (client, server) = connection(lab, 81)?;
    transfer(client, server, 1 << 20).context("up")?;
    let (client, server) = connection(lab, 82)?;
    transfer(server, client, 1 << 20).context("down")
}
