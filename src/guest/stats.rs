//! Figures about the machine, from /proc and /sys (proc(5)).

use std::fs;

use nix::sys::statvfs::statvfs;
use vmlet_wire::GuestStats;

/// The figures now; what cannot be read is 0.
pub(crate) fn read() -> GuestStats {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let meminfo = file("/proc/meminfo");
    let (disk_total, disk_used) = disk();
    let (network_received, network_sent) = network();
    GuestStats {
        uptime_ms: scaled(&file("/proc/uptime"), 1000.0),
        load_centi: u32::try_from(scaled(&file("/proc/loadavg"), 100.0)).unwrap_or(u32::MAX),
        memory_total: memory(&meminfo, "MemTotal:"),
        memory_available: memory(&meminfo, "MemAvailable:"),
        disk_total,
        disk_used,
        network_received,
        network_sent,
    }
}

/// The first word, a decimal number, times `factor`.
fn scaled(text: &str, factor: f64) -> u64 {
    let number: Option<f64> = text.split_whitespace().next().and_then(|word| word.parse().ok());
    (number.unwrap_or_default() * factor).round() as u64
}

/// A line of /proc/meminfo, which counts in KiB, in bytes.
fn memory(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() << 10
}

/// Overlayfs answers for the private disk, where everything is written.
fn disk() -> (u64, u64) {
    let Ok(root) = statvfs("/") else { return (0, 0) };
    let unit = root.fragment_size();
    (root.blocks() * unit, root.blocks().saturating_sub(root.blocks_free()) * unit)
}

fn network() -> (u64, u64) {
    let Ok(devices) = fs::read_dir("/sys/class/net") else { return (0, 0) };
    let devices: Vec<_> = devices.flatten().filter(|device| device.file_name() != "lo").collect();
    let sum = |figure: &str| -> u64 {
        let read = |device: &fs::DirEntry| {
            fs::read_to_string(device.path().join("statistics").join(figure)).ok()?.trim().parse::<u64>().ok()
        };
        devices.iter().filter_map(read).sum()
    };
    (sum("rx_bytes"), sum("tx_bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_kernel_become_figures() {
        assert_eq!(scaled("12.34 5.6\n", 1000.0), 12_340);
        assert_eq!(scaled("0.29 0.10 0.05 1/99 1234\n", 100.0), 29);
        assert_eq!(scaled("", 100.0), 0);
        let meminfo = "MemTotal:         246000 kB\nMemFree: 1 kB\nMemAvailable:   200000 kB\n";
        assert_eq!(memory(meminfo, "MemTotal:"), 246_000 << 10);
        assert_eq!(memory(meminfo, "MemAvailable:"), 200_000 << 10);
        assert_eq!(memory(meminfo, "Nothing:"), 0);
    }
}
