// SPDX-License-Identifier: Apache-2.0

//! rtnetlink(7): interfaces, addresses, routes and neighbours in the network namespace of the
//! calling thread, and a [`Subscription`] to their changes.
#![forbid(unsafe_code)]

mod address;
mod blackhole;
mod default_route;
mod direct_route;
mod link;
mod link_kind;
mod neighbour;
mod next_hop;
mod request;
mod subscription;

pub use address::{add_address, addresses4, addresses6, Address6};
pub use blackhole::{delete_anycast_route, Blackhole};
pub use default_route::{add_default_route_via, default_sources4, DefaultRoute, Existing};
pub use direct_route::DirectRoute;
pub use link::{delete_link, link, links, set_up, tun_queues, Link};
pub use link_kind::LinkKind;
pub use neighbour::{neighbour, Neighbour};
pub use next_hop::{next_hop, NextHop, Target};
pub use request::{attribute, attribute_bytes, number_at, request, Connection, RawMessage};
pub use subscription::{Change, Subscription, Topic};
