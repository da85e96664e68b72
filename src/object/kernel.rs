//! Which kernel an image's VMs boot, as a manifest says it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Violation;
use super::source::{check_path, check_reference};
use crate::boot::{KernelChoice, KernelPaths, KernelSource};
use crate::image::KernelFiles;

/// The kernel that VMs boot: at most one of `host`, `file`, `image` and `oci`. With none it is the one that came
/// with the image's root, if one did, or else the host's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageKernel {
    /// The host's: the daemon's `--kernel`, or the newest that was installed when the daemon started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostKernel>,
    /// Files of the host. They are copied when the image is looked at: what becomes of them later is noticed with
    /// the next change of the spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileKernel>,
    /// Files in the image itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<InnerKernel>,
    /// The newest kernel in another image, of which nothing else is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciKernel>,
    /// Words for the end of the kernel's command line, behind vmlet's own: of two that say different things, the
    /// later one holds. At most 1024 printable ASCII characters. Not `console`, `panic`, `reboot`, `init`, `rdinit`,
    /// `root`, `initrd`, `tsc_early_khz` and `--`, which vmlet relies on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_line: Option<String>,
}

/// The host's kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostKernel {}

/// A kernel in files of the host, as absolute paths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileKernel {
    /// A bzImage (`vmlinuz`), or an ELF with a PVH entry (`vmlinux`).
    pub kernel: String,
    /// An initial RAM disk. It is unpacked below vmlet's own, whose `/init` wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// The folder with the kernel's modules. When absent, `/lib/modules/RELEASE`, or none if there is no such
    /// folder: then the kernel must have all drivers built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<String>,
}

/// A kernel in the image itself, as absolute paths in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InnerKernel {
    /// The kernel. When absent, the newest of `/boot/vmlinuz-*` that has modules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// The folder with its modules. When absent, `/lib/modules/RELEASE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<String>,
}

/// A kernel in another image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OciKernel {
    /// `registry/repository:tag` or `registry/repository@sha256:…`. A tag is resolved once for each
    /// generation of the spec.
    pub reference: String,
}

/// The longest [`command_line`](ImageKernel::command_line), in bytes. The kernel's own limit is 2048
/// (`COMMAND_LINE_SIZE`), and vmlet needs some.
const MAX_COMMAND_LINE: usize = 1024;
/// Parameters that vmlet sets, and that a VM cannot do with otherwise.
const RESERVED: [&str; 8] =
    ["console", "panic", "reboot", "init", "rdinit", "root", "initrd", "tsc_early_khz"];

impl ImageKernel {
    /// What is set. A spec that keeps to the rules sets at most one source.
    pub fn choice(&self) -> KernelChoice {
        let path = |path: &Option<String>| path.as_ref().map(Into::into);
        let source = if self.host.is_some() {
            Some(KernelSource::Host)
        } else if let Some(FileKernel { kernel, initrd, modules }) = &self.file {
            let (initrd, modules) = (path(initrd), path(modules));
            Some(KernelSource::File(KernelFiles { kernel: kernel.into(), initrd, modules }))
        } else if let Some(InnerKernel { kernel, modules }) = &self.image {
            Some(KernelSource::Image(KernelPaths { kernel: path(kernel), modules: path(modules) }))
        } else {
            self.oci.as_ref().map(|oci| KernelSource::Oci(oci.reference.clone()))
        };
        KernelChoice { source, command_line: self.command_line.clone() }
    }

    pub(super) fn check(&self, found: &mut Vec<Violation>) {
        let ImageKernel { host, file, image, oci, command_line } = self;
        let set = [host.is_some(), file.is_some(), image.is_some(), oci.is_some()];
        if set.into_iter().filter(|set| *set).count() > 1 {
            let message = "set at most one of `host` (the host's kernel), `file` (files of the host), `image` (in \
                           the image itself) and `oci` (in another image)";
            found.push(Violation::new("spec.kernel", message));
        }
        if let Some(FileKernel { kernel, initrd, modules }) = file {
            let paths =
                [("kernel", Some(kernel)), ("initrd", initrd.as_ref()), ("modules", modules.as_ref())];
            check_paths("spec.kernel.file", &paths, found);
        }
        if let Some(InnerKernel { kernel, modules }) = image {
            let paths = [("kernel", kernel.as_ref()), ("modules", modules.as_ref())];
            check_paths("spec.kernel.image", &paths, found);
        }
        if let Some(oci) = oci {
            check_reference("spec.kernel.oci.reference", &oci.reference, found);
        }
        if let Some(line) = command_line {
            check_command_line(line, found);
        }
    }
}

fn check_paths(at: &str, paths: &[(&str, Option<&String>)], found: &mut Vec<Violation>) {
    for (name, path) in paths {
        if let Some(path) = path {
            check_path(&format!("{at}.{name}"), path, found);
        }
    }
}

fn check_command_line(line: &str, found: &mut Vec<Violation>) {
    let mut refuse = |message: String| found.push(Violation::new("spec.kernel.commandLine", message));
    if line.len() > MAX_COMMAND_LINE || !line.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        refuse(format!("use at most {MAX_COMMAND_LINE} printable ASCII characters on one line"));
    }
    for word in line.split_ascii_whitespace() {
        // To the kernel, dashes and underscores in names are the same.
        let name = word.trim_matches('"').split('=').next().unwrap_or_default().replace('-', "_");
        if word == "--" || RESERVED.contains(&name.as_str()) {
            refuse(format!("`{word}` is vmlet's own to say; leave it out"));
        }
    }
}
