//! Addresses under which a cloud tells a machine about itself: whoever asks there may get the token of its managed
//! identity, with which machines are rented and deleted. Programs that need none are kept from them.
//!
//! Azure's 168.63.129.16 is not among them: it is that network's name server, too, and Azure's agent lets root alone speak
//! with the rest of it.

/// Amazon's, Azure's, Google's, Oracle's and OpenStack's; Amazon's for containers; Alibaba's; then the same by IPv6, of
/// Amazon, Google and OpenStack.
const ADDRESSES: [&str; 6] = [
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::a9fe:a9fe",
];

pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Those that a program can be kept from: at Google's the first is the name server, and without it nothing has a name.
/// Pure.
pub fn closable(resolv_conf: &str) -> Vec<&'static str> {
    let servers: Vec<&str> = resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with(char::is_whitespace))
        .filter_map(|rest| rest.split_whitespace().next())
        .map(|server| server.split('%').next().unwrap_or(server))
        .collect();
    ADDRESSES.into_iter().filter(|address| !servers.contains(address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_server_is_not_closed() {
        let first = |text: &str| closable(text).contains(&"169.254.169.254");
        for open in ["nameserver 169.254.169.254\n", "search x\n  nameserver\t169.254.169.254 # Google's\n"] {
            assert!(!first(open), "{open:?}");
            assert_eq!(closable(open).len(), ADDRESSES.len() - 1);
        }
        for shut in ["", "nameserver 127.0.0.53\n", "# nameserver 169.254.169.254\n", "nameservers 1\n"] {
            assert_eq!(closable(shut), ADDRESSES, "{shut:?}");
        }
        assert!(!closable("nameserver fe80::a9fe:a9fe%eth0").contains(&"fe80::a9fe:a9fe"));
    }
}
