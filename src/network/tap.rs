//! Persistent taps (Linux, Documentation/networking/tuntap.rst).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

use super::NetworkError;

nix::ioctl_write_ptr_bad!(tun_set_interface, libc::TUNSETIFF, libc::ifreq);
nix::ioctl_write_int_bad!(tun_set_persist, libc::TUNSETPERSIST);
nix::ioctl_write_int_bad!(tun_set_owner, libc::TUNSETOWNER);

/// Makes a persistent tap that `owner` may open, or gives an existing one to `owner`. A tap that a
/// VMM has open is complete already and left alone. Brief, but blocking: it waits for the kernel's
/// lock on network devices.
pub(super) fn create(name: &str, owner: Option<u32>) -> Result<(), NetworkError> {
    let device = open().map_err(|error| {
        NetworkError::lasting(
            "TunUnavailable",
            format!("/dev/net/tun cannot be opened: {error}; load the kernel module: modprobe tun"),
        )
    })?;
    match configure(&device, name, owner) {
        Ok(()) => Ok(()),
        Err(nix::Error::EBUSY) => Ok(()),
        Err(nix::Error::EINVAL) => Err(NetworkError::lasting(
            "NameTaken",
            format!("{name} exists and is no tap; remove it: ip link delete {name}"),
        )),
        Err(nix::Error::EPERM) => Err(NetworkError::lasting(
            "PermissionDenied",
            format!("the tap {name} cannot be made: run the daemon as root or use mode: user"),
        )),
        Err(error) => {
            Err(NetworkError::passing("TapFailed", format!("the tap {name} cannot be made: {error}")))
        }
    }
}

fn open() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun")
}

fn configure(device: &File, name: &str, owner: Option<u32>) -> nix::Result<()> {
    let fd = device.as_raw_fd();
    let request = interface_request(name)?;
    // SAFETY: `fd` is open for the whole call and `request` is an initialised ifreq, which TUNSETIFF reads.
    unsafe { tun_set_interface(fd, &request) }?;
    if let Some(owner) = owner {
        let owner = libc::c_int::try_from(owner).map_err(|_| nix::Error::ERANGE)?;
        // SAFETY: `fd` is open; TUNSETOWNER takes a number, no pointer.
        unsafe { tun_set_owner(fd, owner) }?;
    }
    // Last: a tap that is not complete goes when the file is closed.
    // SAFETY: `fd` is open; TUNSETPERSIST takes a number, no pointer.
    unsafe { tun_set_persist(fd, 1) }?;
    Ok(())
}

/// Ethernet frames without the packet-information header, with the virtio header that QEMU asks for.
fn interface_request(name: &str) -> nix::Result<libc::ifreq> {
    // SAFETY: ifreq is plain old data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(nix::Error::ENAMETOOLONG);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    Ok(request)
}
