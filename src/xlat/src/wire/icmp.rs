//! ICMP (RFC 792) and ICMPv6 (RFC 4443): what both have in common, and their numbers.

/// Length of the header: type, code, checksum, four bytes that depend on the type.
pub(crate) const HEADER: usize = 8;
/// Where the checksum stands.
pub(crate) const CHECKSUM: usize = 2;

/// ICMP types and codes (RFC 792, RFC 1812 §5.2.7).
pub(crate) mod v4 {
    pub(crate) const ECHO_REPLY: u8 = 0;
    pub(crate) const UNREACHABLE: u8 = 3;
    pub(crate) const SOURCE_QUENCH: u8 = 4;
    pub(crate) const REDIRECT: u8 = 5;
    pub(crate) const ECHO: u8 = 8;
    pub(crate) const TIME_EXCEEDED: u8 = 11;
    pub(crate) const PARAMETER_PROBLEM: u8 = 12;

    pub(crate) const HOST: u8 = 1;
    pub(crate) const PROTOCOL: u8 = 2;
    pub(crate) const PORT: u8 = 3;
    pub(crate) const FRAGMENTATION_NEEDED: u8 = 4;
    pub(crate) const SOURCE_ROUTE_FAILED: u8 = 5;
    pub(crate) const HOST_PROHIBITED: u8 = 10;
    pub(crate) const PROHIBITED: u8 = 13;

    /// Whether a message of this type reports an error, so that none may be sent about it (RFC 1812 §4.3.2.7).
    pub(crate) const fn is_error(kind: u8) -> bool {
        matches!(kind, UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM)
    }
}

/// ICMPv6 types and codes (RFC 4443).
pub(crate) mod v6 {
    pub(crate) const UNREACHABLE: u8 = 1;
    pub(crate) const PACKET_TOO_BIG: u8 = 2;
    pub(crate) const TIME_EXCEEDED: u8 = 3;
    pub(crate) const PARAMETER_PROBLEM: u8 = 4;
    pub(crate) const ECHO: u8 = 128;
    pub(crate) const ECHO_REPLY: u8 = 129;
    pub(crate) const MLD_QUERY: u8 = 130;
    pub(crate) const MLD_DONE: u8 = 132;
    pub(crate) const REDIRECT: u8 = 137;
    pub(crate) const MLD_REPORT_V2: u8 = 143;

    pub(crate) const NO_ROUTE: u8 = 0;
    pub(crate) const PROHIBITED: u8 = 1;
    pub(crate) const PORT: u8 = 4;
    pub(crate) const NEXT_HEADER: u8 = 1;

    /// Whether a message of this type reports an error, so that none may be sent about it (RFC 4443 §2.4 (e)).
    pub(crate) const fn is_error(kind: u8) -> bool {
        kind < 128 || kind == REDIRECT
    }
}
