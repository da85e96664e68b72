//! What the daemon itself takes of the host, under the names that every Prometheus exporter uses.

use std::fmt;

use super::{Page, Report};

/// This process.
#[derive(Debug)]
pub struct Process;

impl Report for Process {
    fn report(&self, page: &mut Page<'_>) -> fmt::Result {
        let version = [(&[("version", env!("CARGO_PKG_VERSION"))][..], 1.0)];
        page.gauges("vmlet_build_info", "The version that runs", &version)?;
        let stat = read("stat");
        // Fields are counted from behind the command's name, which may hold anything (proc(5)).
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<f64>().ok());
        let second = rustix::param::clock_ticks_per_second() as f64;
        if let (Some(user), Some(system)) = (field(14), field(15)) {
            let help = "Processor time of the daemon, its VMs not included";
            page.counter("process_cpu_seconds", help, (user + system) / second)?;
        }
        if let Some(pages) = field(24) {
            let bytes = pages * rustix::param::page_size() as f64;
            page.gauge("process_resident_memory_bytes", "Memory of the daemon, its VMs not included", bytes)?;
        }
        if let (Some(start), Some(boot)) = (field(22), boot_time()) {
            let help = "When the daemon started, in seconds since the epoch";
            page.gauge("process_start_time_seconds", help, boot + start / second)?;
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            page.gauge("process_open_fds", "Open file descriptors", open.count() as f64)?;
        }
        Ok(())
    }
}

fn read(name: &str) -> String {
    std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default()
}

/// When the host started, in seconds since the epoch.
fn boot_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
