//! Images made of stopped VMs.

use serde_json::{Value, json};

use crate::host::{Host, Net, condition, is_ready, vm};
use crate::images::{busybox_config, busybox_with};
use crate::shell;

/// Everything that a root can hold, and that an overlay can hide.
const BUILD: &str = "set -e
    for applet in rm ln mknod mkfifo chmod chown stat readlink wc; do /bin/busybox ln -sf busybox /bin/$applet; done
    echo changed > /etc/motd; rm /www/index.html; rm -r /opt/gone; mkdir /opt/gone; echo new > /opt/gone/new
    mkdir -p /etc/ssh /data; echo 0123456789abcdef0123456789abcdef > /etc/machine-id; echo secret > /etc/ssh/ssh_host_rsa_key
    echo one > /data/a; ln /data/a /data/b; ln -s a /data/link; mknod /data/null c 1 3; mkfifo /data/pipe
    chown 1234:70000 /data/a; chmod 4711 /data/a; echo gone > /tmp/gone; sync; touch /data/built
    while true; do sleep 1; done";

fn promoted(name: &str, of: &str, keys: &[&str]) -> Value {
    json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "Image", "metadata": {"name": name},
        "spec": {"source": {"vm": {"name": of, "authorizedKeys": keys}}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_vm_becomes_an_image_that_vms_boot() {
    let mut host = Host::start(Net::Bridge).await;
    let files = [("opt/gone/old", "old"), ("etc/motd", "welcome")];
    host.registry.push(&busybox_with(&files, busybox_config()), "base", "1").await;
    let build = |policy: &str| {
        let mut spec = shell(&host, BUILD);
        spec["image"] = json!({"oci": host.reference("base:1")});
        spec["runPolicy"] = json!(policy);
        vm("builder", spec)
    };
    host.write("builder.yaml", &[build("Always")]);
    host.write("image.yaml", &[promoted("golden", "builder", &["ssh-ed25519 AAAA me"])]);
    host.ready("builder").await;
    host.exec("builder", &["sh", "-c", "until test -e /data/built; do sleep 1; done"]);

    let waits = |image: &Value| condition(image, "Ready")["reason"] == "WaitingForVM";
    let image = host.until("images", "golden", waits).await;
    let message = condition(&image, "Ready")["message"].as_str().unwrap();
    assert!(message.contains("vm/builder is Running"), "{message}");

    host.write("builder.yaml", &[build("Halted")]);
    host.until("images", "golden", is_ready).await;
    // The image needs its VM no more.
    host.remove("builder.yaml");
    host.until("vms", "builder", Value::is_null).await;

    let mut spec = shell(&host, "while true; do sleep 1; done");
    spec["image"] = json!({"name": "golden"});
    host.write("child.yaml", &[vm("child", spec)]);
    host.ready("child").await;
    let look = "cat /etc/motd; ls /www /opt/gone /tmp /etc/ssh; stat -c '%a %u %g %h' /data/a; cat /data/b
        readlink /data/link; stat -c '%F %t %T' /data/null; stat -c %F /data/pipe; wc -c < /etc/machine-id
        cat /root/.ssh/authorized_keys; stat -c %a /root/.ssh /root/.ssh/authorized_keys";
    let seen = host.exec("child", &["sh", "-c", look]);
    let expected = "changed\n/etc/ssh:\n\n/opt/gone:\nnew\n\n/tmp:\n\n/www:\n4711 1234 70000 2\none\na\n\
        character special file 1 3\nfifo\n0\nssh-ed25519 AAAA me\n700\n600";
    assert_eq!(seen, expected);
    for name in ["child.yaml", "image.yaml"] {
        host.remove(name);
    }
    host.assert_host_is_clean().await;
}
