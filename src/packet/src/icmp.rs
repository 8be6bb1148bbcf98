// SPDX-License-Identifier: Apache-2.0

//! ICMP (RFC 792) and ICMPv6 (RFC 4443): the header they share, and their types and codes.

/// Length of the header: type, code, checksum, four bytes that depend on the type.
pub const HEADER: usize = 8;
/// Offset of the checksum in a message.
pub const CHECKSUM: usize = 2;

/// ICMP types and codes (RFC 792, RFC 1812 §5.2.7).
pub mod v4 {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Source quench (obsolete, RFC 6633).
    pub const SOURCE_QUENCH: u8 = 4;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo request.
    pub const ECHO: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Timestamp request.
    pub const TIMESTAMP: u8 = 13;
    /// Timestamp reply.
    pub const TIMESTAMP_REPLY: u8 = 14;

    /// Code of [`UNREACHABLE`]: no route to the network.
    pub const NET_UNREACHABLE: u8 = 0;
    /// Code of [`UNREACHABLE`]: the host does not answer.
    pub const HOST_UNREACHABLE: u8 = 1;
    /// Code of [`UNREACHABLE`]: the host does not speak the protocol.
    pub const PROTOCOL_UNREACHABLE: u8 = 2;
    /// Code of [`UNREACHABLE`]: nobody listens on the port.
    pub const PORT_UNREACHABLE: u8 = 3;
    /// Code of [`UNREACHABLE`]: too big, and DF is set (RFC 1191 §4: with the MTU).
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Code of [`UNREACHABLE`]: source route failed.
    pub const SOURCE_ROUTE_FAILED: u8 = 5;
    /// Code of [`UNREACHABLE`]: the host is administratively prohibited.
    pub const HOST_PROHIBITED: u8 = 10;
    /// Code of [`UNREACHABLE`]: communication is administratively prohibited.
    pub const PROHIBITED: u8 = 13;

    /// Whether a message of this type reports an error, so that none may be sent about it (RFC 1812
    /// §4.3.2.7).
    #[must_use]
    pub const fn is_error(kind: u8) -> bool {
        matches!(kind, UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM)
    }
}

/// ICMPv6 types and codes (RFC 4443, RFC 4861, RFC 2710, RFC 3810).
pub mod v6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Multicast listener query.
    pub const MLD_QUERY: u8 = 130;
    /// Multicast listener done.
    pub const MLD_DONE: u8 = 132;
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
    /// Multicast listener report, version 2.
    pub const MLD_REPORT_V2: u8 = 143;

    /// Code of [`UNREACHABLE`]: no route to the destination.
    pub const NO_ROUTE: u8 = 0;
    /// Code of [`UNREACHABLE`]: administratively prohibited.
    pub const PROHIBITED: u8 = 1;
    /// Code of [`UNREACHABLE`]: beyond the scope of the source address.
    pub const BEYOND_SCOPE: u8 = 2;
    /// Code of [`UNREACHABLE`]: nobody has the address.
    pub const ADDRESS_UNREACHABLE: u8 = 3;
    /// Code of [`UNREACHABLE`]: nobody listens on the port.
    pub const PORT_UNREACHABLE: u8 = 4;
    /// Code of [`UNREACHABLE`]: the source address failed ingress or egress policy.
    pub const SOURCE_POLICY: u8 = 5;

    /// Code of [`PARAMETER_PROBLEM`]: an erroneous field.
    pub const FIELD: u8 = 0;
    /// Code of [`PARAMETER_PROBLEM`]: an unrecognized next header.
    pub const NEXT_HEADER: u8 = 1;
    /// Code of [`PARAMETER_PROBLEM`]: an unrecognized option.
    pub const OPTION: u8 = 2;

    /// Whether a message of this type reports an error, so that none may be sent about it (RFC 4443
    /// §2.4 (e)).
    #[must_use]
    pub const fn is_error(kind: u8) -> bool {
        kind < 128 || kind == REDIRECT
    }
}

/// The header of a message without its checksum: type, code and the four bytes behind the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// What depends on the type: identifier and sequence number, MTU, pointer, flags.
    pub rest: [u8; 4],
}

impl Head {
    /// Makes a header; `rest` is an integer in host byte order.
    #[must_use]
    pub const fn new(kind: u8, code: u8, rest: u32) -> Self {
        Self { kind, code, rest: rest.to_be_bytes() }
    }

    /// Reads the header of a message; `None` if it is cut off.
    #[must_use]
    #[inline]
    pub const fn read(message: &[u8]) -> Option<Self> {
        match *message {
            [kind, code, _, _, a, b, c, d, ..] => Some(Self { kind, code, rest: [a, b, c, d] }),
            _ => None,
        }
    }

    /// Writes the header, checksum zero, to the start of a message; a shorter one stays as it is.
    pub fn write(self, message: &mut [u8]) {
        let [a, b, c, d] = self.rest;
        if let Some(head) = message.first_chunk_mut() {
            *head = [self.kind, self.code, 0, 0, a, b, c, d];
        }
    }
}
