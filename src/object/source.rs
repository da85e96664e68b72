//! Where an image comes from, as a manifest says it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Violation;
use super::meta::validate_name;
use crate::image::{BundleAt, Digest, HostFiles, LayoutAt, Place, Reference, Source, VmAt};

/// Where an image comes from: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageSource {
    /// A registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciSource>,
    /// An OCI image layout on the host, or what `docker save` and `podman save` write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci_layout: Option<OciLayoutSource>,
    /// A tar with a root, and perhaps with the kernel that it runs on. Said in docs/images.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<BundleSource>,
    /// Files of the host, which are used where they are: never copied, never changed, never deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesSource>,
    /// A stopped VM of this namespace: its root as it left it becomes the image. Said in docs/images.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmSource>,
}

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OciSource {
    /// `registry/repository:tag` or `registry/repository@sha256:…`. Registries on a loopback address are
    /// spoken to over plain http.
    pub reference: String,
    /// When the registry is asked.
    #[serde(default, skip_serializing_if = "PullPolicy::is_default")]
    pub pull_policy: PullPolicy,
}

/// When a registry is asked for an image, as the kubelet means it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// Once for each generation of the spec; what is on the host since then is used.
    #[default]
    IfNotPresent,
    /// What the reference stands for now, before each start of a VM; pulled if it is another image. VMs
    /// that run stay as they are. A registry that does not answer keeps VMs from being started.
    Always,
    /// Nobody is asked: the base disk must be on the host, pulled for another VM or Image, or by `vmlet image pull`.
    Never,
}

impl PullPolicy {
    /// Whether it is the one that is meant where none is written.
    pub(super) fn is_default(&self) -> bool {
        *self == PullPolicy::default()
    }
}

/// An image in a folder or tar of the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OciLayoutSource {
    /// The folder or tar, as an absolute path. It is read once for each generation of the spec.
    pub path: String,
    /// Which image, if there are several: an `org.opencontainers.image.ref.name` or a tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// A bundle: exactly one of `path` and `url`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BundleSource {
    /// A file of the host, as an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// An https URL; http only to a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The SHA-256 of the whole file, 64 hexadecimal digits. Required with `url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Files of the host, as absolute paths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FilesSource {
    /// The root: an ext4 file system, cleanly unmounted. It must not change while the image exists.
    pub root: String,
    /// The kernel; the host's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// An initial RAM disk for the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// The kernel's modules: a folder like `/lib/modules/6.1.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<String>,
}

/// A VM whose root becomes an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmSource {
    /// The VM, of the image's namespace. The image waits until it is stopped, and is made once for each
    /// generation of the spec; the VM waits meanwhile. Afterwards neither needs the other.
    pub name: String,
    /// SSH keys that may log in as root, in place of those that may in the VM; none leaves those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorized_keys: Vec<String>,
}

impl ImageSource {
    /// The field that is set. A spec that keeps to the rules has exactly one.
    /// `namespace` is the image's.
    pub fn chosen(&self, namespace: &str) -> Option<Source> {
        let ImageSource { oci, oci_layout, bundle, files, vm } = self;
        if let Some(oci) = oci {
            Some(Source::Oci(oci.reference.clone()))
        } else if let Some(layout) = oci_layout {
            let OciLayoutSource { path, reference } = layout;
            Some(Source::OciLayout(Box::new(LayoutAt { path: path.into(), reference: reference.clone() })))
        } else if let Some(bundle) = bundle {
            bundle.source()
        } else if let Some(files) = files {
            Some(files.source())
        } else {
            vm.as_ref().map(|vm| vm.source(namespace))
        }
    }

    pub(super) fn check(&self, found: &mut Vec<Violation>) {
        let ImageSource { oci, oci_layout, bundle, files, vm } = self;
        let set = [oci.is_some(), oci_layout.is_some(), bundle.is_some(), files.is_some(), vm.is_some()];
        if set.into_iter().filter(|set| *set).count() != 1 {
            let message = "set exactly one of `oci` (a registry), `ociLayout` (a layout or docker archive), \
                           `bundle` (a tar), `files` (files of the host) and `vm` (a stopped VM's root)";
            found.push(Violation::new("spec.source", message));
        }
        if let Some(oci) = oci {
            check_reference("spec.source.oci.reference", &oci.reference, found);
        }
        if let Some(layout) = oci_layout {
            check_path("spec.source.ociLayout.path", &layout.path, found);
            if layout.reference.as_ref().is_some_and(|name| !(1..=1024).contains(&name.len())) {
                let message = "use 1 to 1024 characters, or leave it out";
                found.push(Violation::new("spec.source.ociLayout.reference", message));
            }
        }
        if let Some(bundle) = bundle {
            bundle.check(found);
        }
        if let Some(files) = files {
            files.check(found);
        }
        if let Some(vm) = vm {
            vm.check(found);
        }
    }
}

impl BundleSource {
    fn source(&self) -> Option<Source> {
        let place = match (&self.path, &self.url) {
            (Some(path), _) => Place::Path(path.into()),
            (None, url) => Place::Url(url.clone()?),
        };
        Some(Source::Bundle(Box::new(BundleAt { place, sha256: self.digest() })))
    }

    fn digest(&self) -> Option<Digest> {
        format!("sha256:{}", self.sha256.as_ref()?).parse().ok()
    }

    fn check(&self, found: &mut Vec<Violation>) {
        if self.path.is_some() == self.url.is_some() {
            found.push(Violation::new("spec.source.bundle", "set exactly one of `path` and `url`"));
        }
        if let Some(path) = &self.path {
            check_path("spec.source.bundle.path", path, found);
        }
        if let Some(url) = &self.url {
            if let Err(message) = crate::image::check_url(url) {
                found.push(Violation::new("spec.source.bundle.url", message));
            }
            if self.sha256.is_none() {
                let message = "is needed with `url`: say what `sha256sum` prints of the file";
                found.push(Violation::new("spec.source.bundle.sha256", message));
            }
        }
        if self.sha256.is_some() && self.digest().is_none() {
            let message = "use 64 hexadecimal digits in lower case, as `sha256sum` prints them";
            found.push(Violation::new("spec.source.bundle.sha256", message));
        }
    }
}

impl FilesSource {
    fn source(&self) -> Source {
        let path = |path: &Option<String>| path.as_ref().map(Into::into);
        Source::Files(Box::new(HostFiles {
            root: (&self.root).into(),
            kernel: path(&self.kernel),
            initrd: path(&self.initrd),
            modules: path(&self.modules),
        }))
    }

    fn check(&self, found: &mut Vec<Violation>) {
        let beside = [("kernel", &self.kernel), ("initrd", &self.initrd), ("modules", &self.modules)];
        check_path("spec.source.files.root", &self.root, found);
        for (name, path) in beside {
            let at = format!("spec.source.files.{name}");
            if let Some(path) = path {
                check_path(&at, path, found);
            }
            if path.is_some() && self.kernel.is_none() {
                found.push(Violation::new(at, "is for the kernel of `kernel`, which is missing"));
            }
        }
    }
}

/// Keys in a [`VmSource`].
const MAX_KEYS: usize = 256;
/// The length of a key: an RSA key of 16384 bits has some 2800 characters.
const MAX_KEY: usize = 8192;

impl VmSource {
    fn source(&self, namespace: &str) -> Source {
        Source::Vm(Box::new(VmAt {
            namespace: namespace.to_owned(),
            name: self.name.clone(),
            authorized_keys: self.authorized_keys.clone(),
        }))
    }

    fn check(&self, found: &mut Vec<Violation>) {
        if let Err(message) = validate_name(&self.name) {
            found.push(Violation::new("spec.source.vm.name", message));
        }
        if self.authorized_keys.len() > MAX_KEYS {
            found.push(Violation::new(
                "spec.source.vm.authorizedKeys",
                format!("at most {MAX_KEYS} are possible"),
            ));
        }
        for (index, key) in self.authorized_keys.iter().enumerate() {
            let one_line = key.trim() == key && !key.chars().any(char::is_control);
            if !one_line || key.split_ascii_whitespace().count() < 2 || key.len() > MAX_KEY {
                let message =
                    "write a key as it stands in a .pub file: `ssh-ed25519 AAAA… name`, on one line";
                found.push(Violation::new(format!("spec.source.vm.authorizedKeys[{index}]"), message));
            }
        }
    }
}

pub(super) fn check_reference(path: &str, text: &str, found: &mut Vec<Violation>) {
    if let Err(error) = text.parse::<Reference>() {
        found.push(Violation::new(path, error.to_string()));
    }
}

pub(super) fn check_path(at: &str, path: &str, found: &mut Vec<Violation>) {
    if !path.starts_with('/') {
        found.push(Violation::new(at, "use an absolute path: the daemon has no current folder of yours"));
    }
    if path.len() > 4095 || path.contains('\0') {
        found.push(Violation::new(at, "a path has at most 4095 bytes, none of them NUL"));
    }
}
