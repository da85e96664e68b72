//! Namespaces, wires and VMs to test a network with. Everything goes when its value is dropped.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use uuid::Uuid;
use vmlet::network::{Link, Nic, macs_for, taps_for};
use vmlet::object::Port;

/// How long anything that must happen may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How long a connection that must not come about is tried.
const REFUSAL: Duration = Duration::from_millis(700);

/// Runs a tool and returns what it says.
pub(crate) fn run(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{tool}: {error}; apt-get install iproute2 nftables procps"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?}: {stderr} (these tests need root)");
    String::from_utf8(output.stdout).unwrap()
}

/// A network namespace without a name: it lives as long as this file, its sockets and processes.
pub(crate) struct Namespace(File);

impl Namespace {
    /// A new one, its loopback up.
    pub(crate) fn new() -> Self {
        thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root: unshare(CLONE_NEWNET)");
            run("ip", &["link", "set", "lo", "up"]);
            Namespace(File::open("/proc/thread-self/ns/net").unwrap())
        })
        .join()
        .unwrap()
    }

    /// Does something on a thread inside. What it opens stays inside.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The same for asynchronous work, on a runtime whose threads are all inside.
    pub(crate) fn block_on<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        self.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { tokio::time::timeout(LIMIT, work).await.expect("the time limit") })
        })
    }
}

/// A machine beyond the host: 192.0.2.2 at the other end of a wire to the host's 192.0.2.1.
pub(crate) fn beyond(host: &Namespace) -> Namespace {
    let outside = Namespace::new();
    let path = format!("/proc/{}/fd/{}", std::process::id(), outside.0.as_raw_fd());
    host.within(|| {
        run("ip", &["link", "add", "wan0", "type", "veth", "peer", "name", "lan0"]);
        run("ip", &["link", "set", "lan0", "netns", &path]);
        run("ip", &["address", "add", "192.0.2.1/24", "dev", "wan0"]);
        run("ip", &["link", "set", "wan0", "up"]);
    });
    outside.within(|| {
        run("ip", &["address", "add", "192.0.2.2/24", "dev", "lan0"]);
        run("ip", &["link", "set", "lan0", "up"]);
    });
    outside
}

/// A VM to be.
pub(crate) struct Vm {
    pub(crate) nic: Nic,
}

impl Vm {
    pub(crate) fn new(address: &str, ports: Vec<Port>) -> Self {
        let uid = Uuid::new_v4();
        let link = Link::Bridge {
            tap: taps_for(uid).next().unwrap(),
            tap_owner: None,
            address: address.parse().unwrap(),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 63, 0, 1),
        };
        Vm { nic: Nic { mac: macs_for(uid).next().unwrap(), link, ports } }
    }

    pub(crate) fn tap(&self) -> &str {
        match &self.nic.link {
            Link::Bridge { tap, .. } => tap,
            Link::User => unreachable!("VMs of this lab are on bridges"),
        }
    }

    /// Its VMM is to run as this user.
    pub(crate) fn own(&mut self, user: u32) {
        if let Link::Bridge { tap_owner, .. } = &mut self.nic.link {
            *tap_owner = Some(user);
        }
    }

    /// Opens the tap as a VMM would, and sets the guest's end up.
    pub(crate) fn boot(self, host: &Namespace) -> Running {
        let Link::Bridge { tap, address, prefix, gateway, .. } = &self.nic.link else {
            unreachable!("VMs of this lab are on bridges")
        };
        let guest = Namespace::new();
        let near = host.within(|| open_tap(tap));
        let far = guest.within(|| open_tap("eth0"));
        let (stop, stopped) = UnixStream::pair().unwrap();
        let wire = thread::spawn(move || carry(near, far, stopped));
        guest.within(|| {
            run("sysctl", &["-qw", "net.ipv6.conf.eth0.disable_ipv6=1"]);
            run("ip", &["link", "set", "eth0", "address", &self.nic.mac]);
            run("ip", &["address", "add", &format!("{address}/{prefix}"), "dev", "eth0"]);
            run("ip", &["link", "set", "eth0", "up"]);
            run("ip", &["route", "add", "default", "via", &gateway.to_string()]);
        });
        Running { nic: self.nic, guest, stop: Some(stop), wire: Some(wire) }
    }
}

/// A VM whose wire is carried.
pub(crate) struct Running {
    pub(crate) nic: Nic,
    guest: Namespace,
    stop: Option<UnixStream>,
    wire: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.guest.within(work)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(wire) = self.wire.take() {
            let _ = wire.join();
        }
    }
}

nix::ioctl_write_ptr_bad!(tun_set_interface, libc::TUNSETIFF, libc::ifreq);

fn open_tap(name: &str) -> File {
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: ifreq is plain old data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open and the request is an initialised ifreq.
    unsafe { tun_set_interface(device.as_raw_fd(), &request) }.unwrap();
    device
}

/// Carries frames both ways until the other end of `stopped` is dropped.
fn carry(mut near: File, mut far: File, stopped: UnixStream) {
    let mut frame = [0; 65536];
    loop {
        let mut ends =
            [&near.as_fd(), &far.as_fd(), &stopped.as_fd()].map(|end| PollFd::new(*end, PollFlags::POLLIN));
        poll(&mut ends, PollTimeout::NONE).unwrap();
        let [from_near, from_far, ended] = ends.map(|end| end.any().unwrap_or(false));
        if ended {
            return;
        }
        // A device that is down refuses frames, as a wire loses them.
        if from_near && let Ok(length) = near.read(&mut frame) {
            let _ = far.write(&frame[..length]);
        }
        if from_far && let Ok(length) = far.read(&mut frame) {
            let _ = near.write(&frame[..length]);
        }
    }
}

/// A server that tells each client the address it sees, until dropped.
pub(crate) struct Server(UnixStream);

/// Serves in the namespace of the calling thread.
pub(crate) fn serve(address: SocketAddr) -> Server {
    let listener = TcpListener::bind(address).unwrap();
    let (stop, stopped) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        loop {
            let mut ends =
                [&listener.as_fd(), &stopped.as_fd()].map(|end| PollFd::new(*end, PollFlags::POLLIN));
            poll(&mut ends, PollTimeout::NONE).unwrap();
            if ends[1].any().unwrap_or(false) {
                return;
            }
            if let Ok((mut client, from)) = listener.accept() {
                let _ = client.write_all(from.ip().to_string().as_bytes());
            }
        }
    });
    Server(stop)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

/// What the server at this address says; an error if there is no answer.
pub(crate) fn fetch(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, REFUSAL)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
