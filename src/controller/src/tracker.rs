// SPDX-License-Identifier: Apache-2.0

//! All that one running CLAT holds, and how it comes to hold it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clat_sys::wait_readable;
use clat_xlat::{Local, Prefix, PrefixError};
use nix::errno::Errno;

use crate::errors::{Error, Step};
use crate::host::{Child, ClatdArgs, Host, Orphan};
use crate::model::{Clat, Event, Observer};
use crate::offload::Attached;
use crate::original;
use crate::reconcile::Repairs;
use crate::supervisor::Supervisor;
use clat_host::address::{self, Lease, Pool};
use clat_host::Fwmark;
use clat_host::IfaceName;
use clat_sys::HostError;

/// Metric of the default routes that CLATs set, plus the uplink's index: behind every native one,
/// and unlike one another.
const ROUTE_METRIC: u32 = 2048;

/// A running CLAT. The fields are in the order in which they have to go, which is the order that
/// Rust drops them in: the reverse of how they came.
pub(crate) struct Tracker<H: Host> {
    pub(crate) route: Option<H::Route>,
    pub(crate) offload: Option<Attached<H::Programs>>,
    pub(crate) clatd: Supervisor,
    rule: H::Rule,
    _lease: Lease,
    tun: Arc<H::Tun>,
    pub(crate) repairs: Repairs,
    /// Whether the route is away while no path leads to the PLAT.
    pub(crate) is_withdrawn: bool,
    pub(crate) clat: Clat,
}

/// What [`Tracker::start`] needs besides the host.
pub(crate) struct Request<'r> {
    pub(crate) iface: IfaceName,
    pub(crate) v4iface: IfaceName,
    pub(crate) index: u32,
    pub(crate) net_id: u16,
    pub(crate) prefix: &'r str,
    /// Whether the default route is ours to set.
    pub(crate) standalone: bool,
}

impl<H: Host> Tracker<H> {
    /// Steps 3 to 10 of docs/contract.md, "start". Returning early is the rollback: what was taken
    /// is dropped, last first.
    pub(crate) fn start(
        host: &Arc<H>,
        observer: &Observer,
        pool: &Arc<Pool>,
        need_chain: impl FnOnce() -> io::Result<()>,
        offload: impl FnOnce(&Clat) -> Option<Attached<H::Programs>>,
        request: Request<'_>,
    ) -> Result<Self, Error> {
        let Request { iface, v4iface, index, net_id, prefix, standalone } = request;
        let fail = |errno, step, cause: &str| Error::new(errno, &iface, step, cause);
        let failed = |step| {
            let iface = iface.clone();
            move |e: io::Error| Error::io(&e, &iface, step)
        };

        let tun = Arc::new(host.create_tun(&v4iface).map_err(failed(Step::CreateTun))?);
        let v4index = host.index_of(&v4iface).ok_or_else(|| {
            fail(Errno::ENODEV, Step::CreateTun, "it vanished as soon as it was there")
        })?;
        if let Err(e) = host.disable_ipv6(&v4iface) {
            log::error!("{}", original::ipv6_stays(&v4iface, &e));
        }

        let prefix = parse_prefix(prefix)
            .map_err(|(errno, cause)| fail(errno, Step::ParsePrefix, &cause))?;
        let taken = |addr| {
            host.has_address(addr).unwrap_or_else(|e| {
                log::warn!("cannot tell whether {addr} is taken: {e}");
                true
            })
        };
        let lease = pool.lease(taken).ok_or_else(|| {
            log::error!("No free IPv4 address in 192.0.0.4/{}", address::POOL_LEN);
            let cause =
                format!("every one of 192.0.0.0/{} is taken; stop a CLAT", address::POOL_LEN);
            fail(Errno::EADDRNOTAVAIL, Step::PickV4, &cause)
        })?;
        let v4 = lease.addr();
        let mark = Fwmark::new(net_id);
        let source = host.source_towards(&iface, mark, prefix.addr()).map_err(|e| {
            log::error!("{}", original::no_source(&iface, prefix.addr()));
            fail(Errno::EADDRNOTAVAIL, Step::MakeV6, &format!("it has no route to {prefix}: {e}"))
        })?;
        if !address::is_usable_source(source) {
            log::error!("{}", original::no_source(&iface, prefix.addr()));
            let cause = format!("it has no global IPv6 address, only {source}");
            return Err(fail(Errno::EADDRNOTAVAIL, Step::MakeV6, &cause));
        }
        let random = host.random().map_err(failed(Step::MakeV6))?;
        let Local { v6, .. } = Local::neutral(v4, source, &prefix, random);

        need_chain().map_err(failed(Step::AddRule))?;
        let rule = host.drop_rule(&iface, &prefix, v6).map_err(failed(Step::AddRule))?;

        log::info!("starting clatd on {iface} v4={v4} v6={v6} pfx96={}", prefix.addr());
        let args = ClatdArgs { uplink: iface.clone(), mark, prefix, v4, v6 };
        let spawned = host.spawn_clatd(&args, &tun);
        let spawned = spawned.inspect_err(|e| log::error!("{}", original::no_clatd(e)));
        let mut child = spawned.map_err(failed(Step::Spawn))?;

        let clat = Clat {
            iface: iface.clone(),
            index,
            v4iface: v4iface.clone(),
            v4index,
            prefix,
            v4,
            v6,
            mark,
            since: Instant::now(),
        };
        // Failing to leaves a working, slower CLAT.
        let offload = offload(&clat);

        let route = if standalone {
            await_clatd(host.as_ref(), &mut child, &v4iface, v4)
                .map_err(failed(Step::AwaitClatd))?;
            let metric = ROUTE_METRIC.saturating_add(index);
            Some(host.default_route(v4index, v4, metric).map_err(failed(Step::AddRoute))?)
        } else {
            None
        };

        let clatd =
            supervise(host, observer, args, child, &tun).map_err(failed(Step::Supervise))?;
        Ok(Self {
            route,
            offload,
            clatd,
            rule,
            _lease: lease,
            tun,
            repairs: Repairs::default(),
            is_withdrawn: false,
            clat,
        })
    }
}

impl<H: Host> Tracker<H> {
    /// Goes on with a CLAT of a former life, unless something of it is missing that cannot be put
    /// back. Returning early removes it: what was taken over is dropped.
    pub(crate) fn adopt(
        host: &Arc<H>,
        observer: &Observer,
        pool: &Arc<Pool>,
        offload: impl FnOnce(&Clat) -> Option<Attached<H::Programs>>,
        orphan: Orphan<H::Child, H::Tun>,
        rule: H::Rule,
        standalone: bool,
    ) -> Result<Self, Error> {
        let Orphan { tun, args, child } = orphan;
        let tun = Arc::new(tun);
        // These two go before it, the last first.
        let (rule, child) = (rule, child);
        let iface = args.uplink.clone();
        let fail = |errno, step, cause: &str| Error::new(errno, &iface, step, cause);
        let failed = |step| {
            let iface = iface.clone();
            move |e: io::Error| Error::io(&e, &iface, step)
        };
        let v4iface =
            iface.v4iface().map_err(|e| fail(e.errno(), Step::CheckName, &e.to_string()))?;
        let index = host
            .index_of(&iface)
            .ok_or_else(|| fail(Errno::ENODEV, Step::FindNetwork, "there is no such interface"))?;
        let v4index = host
            .index_of(&v4iface)
            .ok_or_else(|| fail(Errno::ENODEV, Step::CreateTun, "it is gone"))?;
        let ClatdArgs { mark, prefix, v4, v6, .. } = args;
        let lease = pool.take(v4).ok_or_else(|| {
            fail(Errno::EADDRNOTAVAIL, Step::PickV4, &format!("{v4} is another's"))
        })?;
        if !address::is_usable_source(v6) {
            return Err(fail(Errno::EADDRNOTAVAIL, Step::MakeV6, &format!("{v6} is not global")));
        }
        if !host.is_configured(&v4iface, v4).map_err(failed(Step::AwaitClatd))? {
            let cause = format!("{v4iface} has no address {v4}");
            return Err(fail(Errno::EADDRNOTAVAIL, Step::AwaitClatd, &cause));
        }
        let since = Instant::now();
        let clat = Clat { iface, index, v4iface, v4index, prefix, v4, v6, mark, since };
        let offload = offload(&clat);
        let metric = ROUTE_METRIC.saturating_add(index);
        let route = standalone.then(|| host.adopt_route(v4index, v4, metric)).transpose();
        let route = route.map_err(|e| Error::io(&e, &clat.iface, Step::AddRoute))?;
        let clatd = supervise(host, observer, args, child, &tun)
            .map_err(|e| Error::io(&e, &clat.iface, Step::Supervise))?;
        Ok(Self {
            route,
            offload,
            clatd,
            rule,
            _lease: lease,
            tun,
            repairs: Repairs::default(),
            is_withdrawn: false,
            clat,
        })
    }
}

impl<H: Host> Tracker<H> {
    /// Gives the CLAT an IPv6 address in the /64 that its uplink has now. Its device, its route and
    /// its IPv4 address stay.
    pub(crate) fn renumber(
        &mut self,
        host: &Arc<H>,
        observer: &Observer,
        offload: impl FnOnce(&Clat) -> Option<Attached<H::Programs>>,
    ) -> Result<(), Error> {
        let iface = self.clat.iface.clone();
        let failed = |step| {
            let iface = iface.clone();
            move |e: io::Error| Error::io(&e, &iface, step)
        };
        let Clat { mark, prefix, v4, .. } = self.clat;
        let source = host.source_towards(&iface, mark, prefix.addr());
        let source = source.map_err(failed(Step::MakeV6))?;
        let random = host.random().map_err(failed(Step::MakeV6))?;
        let v6 = Local::neutral(v4, source, &prefix, random).v6;
        let rule = host.drop_rule(&iface, &prefix, v6).map_err(failed(Step::AddRule))?;
        let clat = Clat { v6, ..self.clat.clone() };
        self.clatd.stop();
        self.clatd = self.new_clatd(host, observer, &clat)?;
        self.rule = rule;
        // Its filters take the places of the old ones.
        self.offload = None;
        self.offload = offload(&clat);
        self.clat = clat;
        Ok(())
    }

    /// Has another clatd go on with the CLAT.
    pub(crate) fn replace_clatd(
        &mut self,
        host: &Arc<H>,
        observer: &Observer,
    ) -> Result<(), Error> {
        self.clatd.stop();
        self.clatd = self.new_clatd(host, observer, &self.clat)?;
        Ok(())
    }

    /// Starts a clatd for the CLAT as it is to be.
    fn new_clatd(
        &self,
        host: &Arc<H>,
        observer: &Observer,
        clat: &Clat,
    ) -> Result<Supervisor, Error> {
        let Clat { iface, mark, prefix, v4, v6, .. } = clat.clone();
        let failed = |step| {
            let iface = iface.clone();
            move |e: io::Error| Error::io(&e, &iface, step)
        };
        let args = ClatdArgs { uplink: iface.clone(), mark, prefix, v4, v6 };
        let child = host.spawn_clatd(&args, &self.tun).map_err(failed(Step::Spawn))?;
        supervise(host, observer, args, child, &self.tun).map_err(failed(Step::Supervise))
    }
}

/// Watches over a clatd, and starts it again as it was.
fn supervise<H: Host>(
    host: &Arc<H>,
    observer: &Observer,
    args: ClatdArgs,
    child: H::Child,
    tun: &Arc<H::Tun>,
) -> io::Result<Supervisor> {
    let restarted = {
        let (observer, iface) = (Arc::clone(observer), args.uplink.clone());
        move |pid, restarts, cause| {
            observer(Event::Restarted { iface: iface.clone(), pid, restarts, cause });
        }
    };
    let taken = {
        let (observer, iface) = (Arc::clone(observer), args.uplink.clone());
        move || observer(Event::AddressTaken { iface: iface.clone() })
    };
    let (name, host, tun) = (args.uplink.to_string(), Arc::clone(host), Arc::clone(tun));
    Supervisor::watch(name, child, move || host.spawn_clatd(&args, &tun), restarted, taken)
}

/// Waits until clatd has given the device its address: a route by it could not be set before.
fn await_clatd<H: Host>(
    host: &H,
    child: &mut H::Child,
    v4iface: &IfaceName,
    v4: Ipv4Addr,
) -> io::Result<()> {
    const STEP: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + host.clatd_patience();
    while !host.is_configured(v4iface, v4)? {
        if wait_readable(&[child.as_fd()], Some(STEP)).is_some() {
            let how = child.reap().how;
            let cause = format!("it {how} before {v4iface} was set up; its log says why");
            return Err(io::Error::other(cause));
        }
        if Instant::now() > deadline {
            let cause = format!("{v4iface} still has no address {v4}");
            return Err(HostError::because(Errno::ETIMEDOUT, cause));
        }
    }
    Ok(())
}

/// A NAT64 prefix that a CLAT can use.
fn parse_prefix(text: &str) -> Result<Prefix, (Errno, String)> {
    let shown: String = text.escape_debug().take(64).collect();
    let prefix: Prefix = text.parse().map_err(|e: PrefixError| {
        let errno = if e == PrefixError::Ipv4 { Errno::EAFNOSUPPORT } else { Errno::EINVAL };
        (errno, format!("\"{shown}\": {e}"))
    })?;
    if prefix.bits() != 96 {
        return Err((Errno::EINVAL, format!("\"{shown}\": a CLAT needs a /96")));
    }
    Ok(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        assert_eq!(parse_prefix("64:ff9b::/96"), Ok(Prefix::WELL_KNOWN));
        for (text, errno) in [
            ("", Errno::EINVAL),
            ("64:ff9b::", Errno::EINVAL),
            ("64:ff9b::/", Errno::EINVAL),
            ("64:ff9b::/096x", Errno::EINVAL),
            ("64:ff9b::/+96", Errno::EINVAL),
            ("64:ff9b::/ 96", Errno::EINVAL),
            (" 64:ff9b::/96", Errno::EINVAL),
            ("64:ff9b::/96\n", Errno::EINVAL),
            ("64:ff9b::%eth0/96", Errno::EINVAL),
            ("wlan0", Errno::EINVAL),
            ("/96", Errno::EINVAL),
            ("64:ff9b::/64", Errno::EINVAL),
            ("64:ff9b::/95", Errno::EINVAL),
            ("64:ff9b::/128", Errno::EINVAL),
            ("64:ff9b::/4294967392", Errno::EINVAL),
            ("64:ff9b::1/96", Errno::EINVAL),
            ("2001:db8:0:0:ff00::/96", Errno::EINVAL),
            ("192.0.2.0/24", Errno::EAFNOSUPPORT),
            ("192.0.2.0/96", Errno::EAFNOSUPPORT),
        ] {
            assert_eq!(parse_prefix(text).map_err(|(errno, _)| errno), Err(errno), "{text:?}");
        }
        let (_, cause) = parse_prefix("a\nb").expect_err("not a prefix");
        assert!(!cause.contains('\n'), "{cause:?}");
        let (_, cause) = parse_prefix(&"x".repeat(1 << 20)).expect_err("not a prefix");
        assert!(cause.len() < 200, "{} bytes", cause.len());
    }
}
