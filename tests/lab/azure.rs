//! A machine rented from the simulated Azure is a real one: cloud-init sets it up, sshd shows the key that we chose,
//! and it is gone when it is given back.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kit::{
    cloud::{self, Cloud, Options, Pace, Takes},
    cloud_client::{Client, machine},
    cloud_lab::{LabMetal, Metadata},
    hq,
    lab::{Machine, Release},
    process::CompletedProcess,
};
use serde_json::json;
use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

/// A key pair of this name; the public half.
fn key(dir: &Path, name: &str) -> String {
    let at = dir.join(name);
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
        .arg(&at)
        .status();
    assert!(made.unwrap().success());
    fs::read_to_string(at.with_extension("pub")).unwrap().trim().to_owned()
}

/// A command over there, by somebody who believes one host key and no other.
fn ssh(dir: &Path, address: &str, host: &str, command: &str) -> CompletedProcess {
    fs::write(dir.join("known"), format!("{address} {host}\n")).unwrap();
    let known = format!("UserKnownHostsFile={}", dir.join("known").display());
    let mut ssh = Command::new("ssh");
    ssh.args([
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=yes",
        "-o",
        "ConnectTimeout=10",
    ])
    .args(["-o", &known, "-o", "IdentitiesOnly=yes", "-i"])
    .arg(dir.join("user"))
    .args([&format!("echoes@{address}"), command]);
    CompletedProcess::run(&mut ssh)
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(300);
    while !done().await {
        assert!(Instant::now() < end, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_rented_machine_shows_our_key_and_is_gone_when_given_back() {
    if !hq::can_boot("a machine of the simulated Azure") {
        return;
    }
    let metal = Arc::new(LabMetal::new(Release::Bookworm, &[]).unwrap());
    let takes =
        Takes { vm_create: Duration::from_secs(1), vm_delete: Duration::from_secs(1), ..Takes::default() };
    let options = Options {
        pace: Pace::Running(1.0),
        takes,
        metal: Arc::clone(&metal) as Arc<_>,
        // From everywhere: the lab's own address comes and goes with its machines.
        imds: Some((Ipv4Addr::UNSPECIFIED.into(), 0)),
        ..Options::default()
    };
    let Some(cloud) = Cloud::start(options) else { return };
    // Before there is a machine: what asks there must never get to whatever this host itself is in.
    let _way = Metadata::of(&cloud).unwrap();
    let client = Client::new(&cloud).await;
    client.group("run", json!({})).await;

    let dir = tempfile::tempdir().unwrap();
    let (host, user) = (key(dir.path(), "host"), key(dir.path(), "user"));
    let private = fs::read_to_string(dir.path().join("host")).unwrap();
    let settings = json!({
        "ssh_keys": {"ed25519_private": private, "ed25519_public": host},
        "write_files": [{"path": "/etc/echoes", "content": "from custom data\n"}],
    });
    let mut body = machine(&cloud, "gpu-vm");
    let os = &mut body["properties"]["osProfile"];
    os["customData"] = json!(STANDARD.encode(format!("#cloud-config\n{settings}\n")));
    os["linuxConfiguration"]["ssh"]["publicKeys"][0]["keyData"] = json!(user);
    let answer = client.put_machine("run", "vm", &body).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    let id = answer.body["id"].as_str().unwrap().to_owned();
    let poll = answer.header("azure-asyncoperation").to_owned();
    until("the machine", async || client.get(&poll).await.body["status"] != "InProgress").await;
    assert_eq!(client.get(&poll).await.body["status"], "Succeeded");

    let nic = &cloud.get(&cloud.ids(cloud::Kind::Nic)[0]).unwrap()["properties"]["ipConfigurations"][0]["properties"];
    let address = nic["privateIPAddress"].as_str().unwrap().to_owned();
    let out = ssh(
        dir.path(),
        &address,
        &host,
        "cloud-init status --long; hostname; cat /etc/echoes; sudo -n id -u; sudo touch /here",
    );
    assert!(out.code == 0, "{out}\n{}", metal.with(&id, |m| m.console()).unwrap_or_default());
    let told = out.text();
    assert!(told.starts_with("status: done\n"), "{told}");
    assert!(told.ends_with("\ngpu-vm\nfrom custom data\n0\n"), "{told}");
    let keys = ssh(dir.path(), &address, &host, "ls /etc/ssh/ssh_host_*_key.pub");
    assert_eq!(keys.text(), "/etc/ssh/ssh_host_ed25519_key.pub\n", "no key but the one that we pinned");
    // It knows itself, as every machine of Azure's does.
    let ask = "import urllib.request as r; at = \"http://169.254.169.254/metadata/instance?api-version=2021-02-01\"; print(r.build_opener(r.ProxyHandler({})).open(r.Request(at, headers={\"Metadata\": \"true\"}), timeout=10).read().decode())";
    let ask = &format!("python3 -c '{ask}'");
    let told = ssh(dir.path(), &address, &host, ask).json();
    assert_eq!(told["compute"]["resourceId"].as_str().unwrap().to_lowercase(), id.to_lowercase());
    // Whoever answers with another key is not talked to.
    let other = key(dir.path(), "other");
    assert_ne!(ssh(dir.path(), &address, &other, "true").code, 0);

    let name = metal.with(&id, |machine| machine.name().to_owned()).unwrap();
    // Its host dies: it comes up again with its disk, and its key is the same.
    cloud.reboot(&id);
    until("the machine after its reboot", async || ssh(dir.path(), &address, &host, "uptime -s").code == 0)
        .await;
    assert_eq!(ssh(dir.path(), &address, &host, "ls /here").text(), "/here\n");

    assert!(Machine::list().unwrap().contains(&name));
    client.delete_machine("run", "vm").await;
    until("the end of the machine", async || !Machine::list().unwrap().contains(&name)).await;
    until("the end of what it had", async || cloud.left().len() == 1).await;
    cloud.assert_honest();
}
