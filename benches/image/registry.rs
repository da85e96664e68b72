//! A real registry process whose storage is kept under the build's folder: images are made once.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::content::{Blob, Layer, digest};

/// Changes when the images do, so that those of before are made anew.
const VERSION: &str = "images-1";

/// `docker-registry` on a port of its own, gone when dropped; its storage stays.
pub(crate) struct Registry {
    child: Child,
    address: SocketAddr,
    folder: PathBuf,
}

/// What is known of an image that the registry has.
#[derive(Serialize, Deserialize)]
pub(crate) struct Image {
    name: String,
    pub(crate) layers: Vec<Stored>,
}

/// A layer in the registry's storage.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) path: PathBuf,
    /// Length of the tar.
    pub(crate) unpacked: u64,
}

impl Registry {
    pub(crate) async fn start() -> Registry {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(VERSION);
        fs::create_dir_all(&folder).expect("the build's folder takes another");
        // A port that was free a moment ago.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has ports");
        let address = free.local_addr().expect("it is bound");
        drop(free);
        let config = folder.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
            folder.display()
        );
        fs::write(&config, text).expect("the folder takes files");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("scripts/install-deps.sh installs docker-registry");
        let registry = Registry { child, address, folder };
        let deadline = Instant::now() + Duration::from_secs(30);
        while client().get(registry.url("")).send().await.is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        registry
    }

    /// The image of these layers, pushed if it is not there from an earlier run.
    pub(crate) async fn image(&self, name: &str, layers: &[Layer]) -> Image {
        let known = self.folder.join(format!("{name}.json"));
        if let Some(image) = fs::read(&known).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
            return image;
        }
        let (mut diff_ids, mut descriptors, mut stored) = (Vec::new(), Vec::new(), Vec::new());
        for layer in layers {
            let Blob { gzip, diff_id, unpacked } = layer.build();
            let (size, blob) = (gzip.len(), self.push(name, gzip).await);
            stored.push(Stored { path: self.stored(&blob), unpacked });
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            descriptors.push(json!({"mediaType": media_type, "digest": blob, "size": size}));
            diff_ids.push(diff_id);
        }
        let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
        let config =
            json!({"os": "linux", "architecture": "amd64", "config": {}, "rootfs": rootfs}).to_string();
        let (size, config) = (config.len(), self.push(name, config.into_bytes()).await);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size},
            "layers": descriptors,
        });
        let request = client().put(self.url(&format!("{name}/manifests/1"))).body(manifest.to_string());
        let request = request.header("content-type", "application/vnd.oci.image.manifest.v1+json");
        accepted(request).await;
        let image = Image { name: name.to_owned(), layers: stored };
        let text = serde_json::to_vec(&image).expect("it is plain data");
        fs::write(known, text).expect("the folder takes files");
        image
    }

    pub(crate) fn reference(&self, image: &Image) -> String {
        format!("{}/{}:1", self.address, image.name)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v2/{path}", self.address)
    }

    async fn push(&self, name: &str, blob: Vec<u8>) -> String {
        let digest = digest(Sha256::new_with_prefix(&blob));
        let answer = accepted(client().post(self.url(&format!("{name}/blobs/uploads/")))).await;
        let upload = answer.headers()["location"].to_str().expect("a URL").to_owned();
        accepted(client().put(format!("{upload}&digest={digest}")).body(blob)).await;
        digest
    }

    /// Where the registry keeps a blob.
    fn stored(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.folder.join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn accepted(request: reqwest::RequestBuilder) -> reqwest::Response {
    let answer = request.send().await.expect("the registry answers");
    answer.error_for_status().expect("the registry takes it")
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}
