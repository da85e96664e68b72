//! The images that the tests boot.

use serde_json::{Value, json};

use crate::common::oci::{Image, Item, Layer, tar};

/// Two layers: Debian's static busybox with its links, and a page to serve.
pub(crate) fn busybox() -> Image {
    busybox_with(&[], busybox_config())
}

/// What [`busybox`] says to run.
pub(crate) fn busybox_config() -> Value {
    json!({"Cmd": ["/bin/httpd", "-f", "-v", "-p", "80", "-h", "/www"], "Env": ["PATH=/bin", "FROM=image"]})
}

/// [`busybox`] with more programs, and another config.
pub(crate) fn busybox_with(files: &[(&str, &str)], config: Value) -> Image {
    Image::with_config(layers(files), config)
}

/// [`busybox`] below another layer.
pub(crate) fn busybox_below(layer: Layer) -> Image {
    let mut all = layers(&[]);
    all.push(layer);
    Image::with_config(all, busybox_config())
}

fn layers(files: &[(&str, &str)]) -> Vec<Layer> {
    let binary = std::fs::read("/bin/busybox").expect("apt-get install busybox-static");
    let mut items = vec![
        Item::dir("bin"),
        Item::dir("etc"),
        Item::dir("etc/nginx"),
        Item::dir("etc/nginx/conf.d"),
        Item::dir("tmp").mode(0o1777),
        Item::file("bin/busybox", binary).mode(0o755),
        Item::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        Item::file("etc/group", "root:x:0:\n"),
        Item::file("etc/unwanted", "hidden by the upper layer\n"),
    ];
    let applets = [
        "sh", "cat", "echo", "sleep", "httpd", "touch", "ls", "grep", "id", "ps", "test", "wget", "sync",
        "stty", "tty", "head", "mkdir", "seq", "yes",
    ];
    items.extend(applets.map(|applet| Item::symlink(format!("bin/{applet}"), "busybox")));
    items.extend(files.iter().map(|(path, text)| Item::file(path, text).mode(0o755)));
    let page = [
        Item::dir("www"),
        Item::file("www/index.html", "hello from a VM\n"),
        Item::file("etc/.wh.unwanted", ""),
    ];
    vec![Layer::gzip(&tar(&items)), Layer::zstd(&tar(&page))]
}
