//! `vmlet doctor`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::error::{CliError, Outcome};
use super::output::{self, Form};
use crate::config;
use crate::doctor::{Examination, Finding, Status, examine};
use crate::hypervisor::qemu::{Accelerator, AcceleratorSetting, QemuSettings, choose_accelerator};

/// Look at this host: what VMs need, what is missing, what to do
///
/// Exits with 1 if no VM can run here.
#[derive(Args, Debug)]
pub(super) struct Doctor {
    /// The form of the findings
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,

    /// The folder of the daemon's own
    #[arg(long, value_name = "DIR", env = "VMLET_STATE", default_value_os_t = config::default_state(),
        hide_default_value = true)]
    state: PathBuf,

    /// The VMs' bridge
    #[arg(long, value_name = "NAME", env = "VMLET_BRIDGE", default_value = "vmlet0")]
    bridge: String,
}

impl Doctor {
    /// Runs the verb.
    pub(super) async fn run(self) -> Outcome {
        let accelerator = accelerator().await;
        let examination = Examination { state_dir: &self.state, bridge: &self.bridge, accelerator };
        let findings = examine(examination).await;
        let mut out = std::io::stdout();
        match self.output {
            Form::Json => {
                let json = serde_json::to_string_pretty(&findings).expect("findings are plain data");
                writeln!(out, "{json}")?;
            }
            Form::Text => findings.iter().try_for_each(|finding| print(&mut out, finding))?,
        }
        match findings.iter().map(|finding| finding.status).max() {
            Some(Status::Fail) => Err(CliError::silent(1)),
            _ => Ok(()),
        }
    }
}

fn print(out: &mut impl Write, finding: &Finding) -> std::io::Result<()> {
    let (word, code) = match finding.status {
        Status::Ok => ("ok", 32),
        Status::Warn => ("warn", 33),
        Status::Fail => ("FAIL", 31),
    };
    let word = format!("{word:<4}");
    let word = if output::colour(&std::io::stdout()) { format!("\x1b[{code}m{word}\x1b[0m") } else { word };
    writeln!(out, "{word}  {:<12}  {}", finding.name, finding.detail)?;
    match &finding.fix {
        Some(fix) => writeln!(out, "{:20}{fix}", ""),
        None => Ok(()),
    }
}

/// Whether there is a /dev/kvm that opens. Whether it works is for the hypervisor's self-test.
/// What runs guest code here: found out by running some.
async fn accelerator() -> Finding {
    let helper = QemuSettings::default().helper;
    match choose_accelerator(AcceleratorSetting::Auto, &helper).await {
        Accelerator::Kvm => Finding::ok("accelerator", "KVM executes guest code"),
        Accelerator::Tcg { why } => Finding::warn(
            "accelerator",
            format!("{why}; VMs run by translation (TCG), many times slower"),
            "enable virtualisation in the firmware or the cloud's settings, then `modprobe kvm`",
        ),
    }
}
