//! The network device: found by its hardware address, given a static address and a default route
//! (netdevice(7) and rtnetlink's older ioctls, which need no library).

use std::ffi::c_ulong;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use vmlet_wire::GuestNetwork;

use crate::console;
use crate::failure::{During, Failure};

/// How long the device may take to appear once its driver is loaded.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(10);

/// Brings loopback up, and the network device if there is to be one.
pub(crate) fn apply(network: Option<&GuestNetwork>) -> Result<(), Failure> {
    let control = Control::open().during(|| "open a socket to set the network up".to_owned())?;
    if let Err(error) = control.up("lo") {
        console::say(format!("cannot bring loopback up: {error}"));
    }
    let Some(network) = network else { return Ok(()) };
    let address: Ipv4Addr =
        network.address.parse().during(|| format!("use the address {:?}", network.address))?;
    let mask = netmask(network.prefix)?;
    let device = wait_for_device(&network.mac)?;
    let doing = |what: &str| format!("{what} on {device}");
    control
        .set_address(&device, libc::SIOCSIFADDR, address)
        .during(|| doing(&format!("set the address {address}")))?;
    control
        .set_address(&device, libc::SIOCSIFNETMASK, mask)
        .during(|| doing(&format!("set the prefix length {}", network.prefix)))?;
    control.up(&device).during(|| format!("bring {device} up"))?;
    if let Some(gateway) = &network.gateway {
        let gateway: Ipv4Addr = gateway.parse().during(|| format!("use the gateway {gateway:?}"))?;
        control.route_by(gateway).during(|| format!("set the default route by {gateway}"))?;
    }
    Ok(())
}

fn netmask(prefix: u8) -> Result<Ipv4Addr, Failure> {
    match prefix {
        0 => Ok(Ipv4Addr::UNSPECIFIED),
        1..=32 => Ok(Ipv4Addr::from_bits(u32::MAX << (32 - prefix))),
        _ => Err(Failure::new(format!("{prefix} is no IPv4 prefix length"))),
    }
}

fn wait_for_device(mac: &str) -> Result<String, Failure> {
    let deadline = Instant::now() + DEVICE_TIMEOUT;
    loop {
        if let Some(device) = find_device(mac) {
            return Ok(device);
        }
        if Instant::now() > deadline {
            return Err(Failure::new(format!(
                "no network device with the address {mac}; is the virtio_net module in the initramfs?"
            )));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn find_device(mac: &str) -> Option<String> {
    fs::read_dir("/sys/class/net").ok()?.flatten().find_map(|entry| {
        let address = fs::read_to_string(entry.path().join("address")).ok()?;
        address.trim().eq_ignore_ascii_case(mac).then(|| entry.file_name().into_string().ok())?
    })
}

/// A socket for the ioctls.
struct Control(OwnedFd);

impl Control {
    fn open() -> io::Result<Self> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Control(socket))
    }

    fn set_address(&self, device: &str, request: c_ulong, address: Ipv4Addr) -> io::Result<()> {
        let mut ifreq = ifreq(device)?;
        ifreq.ifr_ifru.ifru_addr = sockaddr(address);
        self.ioctl(request, &mut ifreq)
    }

    fn up(&self, device: &str) -> io::Result<()> {
        let mut ifreq = ifreq(device)?;
        self.ioctl(libc::SIOCGIFFLAGS, &mut ifreq)?;
        let up = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        // SAFETY: the kernel has just written the flags.
        ifreq.ifr_ifru.ifru_flags = unsafe { ifreq.ifr_ifru.ifru_flags } | up;
        self.ioctl(libc::SIOCSIFFLAGS, &mut ifreq)
    }

    fn route_by(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: rtentry is plain data, for which zeros are valid (a null device name means any).
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = sockaddr(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = sockaddr(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = sockaddr(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        self.ioctl(libc::SIOCADDRT, &mut route)
    }

    fn ioctl<T>(&self, request: c_ulong, argument: &mut T) -> io::Result<()> {
        // SAFETY: every request above takes a pointer to the type that it is given here.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn ifreq(device: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data, for which zeros are valid.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= ifreq.ifr_name.len() {
        return Err(io::Error::other("the device's name is too long"));
    }
    for (target, byte) in ifreq.ifr_name.iter_mut().zip(device.bytes()) {
        *target = byte as libc::c_char;
    }
    Ok(ifreq)
}

fn sockaddr(address: Ipv4Addr) -> libc::sockaddr {
    // sockaddr_in: family, port (2 bytes), address (4 bytes), in network order.
    let mut data = [0; 14];
    for (target, byte) in data[2..6].iter_mut().zip(address.octets()) {
        *target = byte as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netmasks() {
        assert_eq!(netmask(24).unwrap(), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(netmask(0).unwrap(), Ipv4Addr::UNSPECIFIED);
        assert_eq!(netmask(32).unwrap(), Ipv4Addr::BROADCAST);
        assert!(netmask(33).is_err());
    }
}
