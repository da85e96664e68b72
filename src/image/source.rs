//! Where an image comes from, as one value.
//!
//! Specs flow in ([`ImageSource`](crate::object::ImageSource), a VM's direct reference); pins, pulls and
//! plans carry it, and compare it: another source is resolved anew.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Digest;

/// The identity of an image before its digest is known. Small: every pin has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A registry: the reference as the spec wrote it.
    Oci(String),
    /// An OCI image layout, or what `docker save` writes: a folder or a tar on the host.
    OciLayout(Box<LayoutAt>),
    /// A tar of a root, and perhaps a kernel.
    Bundle(Box<BundleAt>),
    /// Files of the host, used where they are.
    Files(Box<HostFiles>),
    /// A stopped VM.
    Vm(Box<VmAt>),
}

/// An image in a folder or tar of the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayoutAt {
    /// The folder or tar.
    pub path: PathBuf,
    /// Which of its images, if there are several.
    pub reference: Option<String>,
}

/// A bundle.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BundleAt {
    /// Where it is.
    pub place: Place,
    /// The SHA-256 of the whole file; known of every URL.
    pub sha256: Option<Digest>,
}

/// A VM whose root becomes an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VmAt {
    /// Its namespace, which is the image's.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// SSH keys that the image has in place of the VM's.
    pub authorized_keys: Vec<String>,
}

/// Where a bundle is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    /// A file of the host.
    Path(PathBuf),
    /// On a web server.
    Url(String),
}

/// Files of the host that make an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostFiles {
    /// The root: an ext4 file system.
    pub root: PathBuf,
    /// The kernel; none for the host's.
    pub kernel: Option<PathBuf>,
    /// An initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// A folder of the kernel's modules.
    pub modules: Option<PathBuf>,
}

impl Source {
    /// What is done to find the digest, for people: `asking the registry for debian:12`.
    pub fn resolving(&self) -> String {
        match self {
            Source::Oci(reference) => format!("asking the registry for {reference}"),
            Source::OciLayout(_) | Source::Bundle(_) | Source::Files(_) => format!("reading {self}"),
            Source::Vm(_) => format!("looking at {self}"),
        }
    }
}

/// As people name it: `debian:12`, `/srv/images.tar (app:1)`, `https://…/app.tar.zst`.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Oci(reference) => f.write_str(reference),
            Source::OciLayout(layout) => {
                layout.path.display().fmt(f)?;
                layout.reference.iter().try_for_each(|reference| write!(f, " ({reference})"))
            }
            Source::Bundle(bundle) => match &bundle.place {
                Place::Path(path) => path.display().fmt(f),
                Place::Url(url) => f.write_str(url),
            },
            Source::Files(files) => files.root.display().fmt(f),
            Source::Vm(vm) => write!(f, "vm/{}", vm.name),
        }
    }
}
