//! What goes wrong on real machines: each fault ends in a clear error or in success, never half-way, and with the
//! fault gone the same command succeeds. The dashboard is the cheapest service: it needs nginx alone.

use kit::{
    hq,
    lab::{Machine, Release},
};
use std::process::Command;

const CHEAP: &str = "install --service dashboard --set data.disk=none";

/// Nothing of ours is on the machine yet.
#[track_caller]
fn untouched(machine: &Machine) {
    let there =
        machine.exec("dpkg-query -W nginx; ls /etc/nginx /opt/echoes-appliance /etc/sysusers.d/echoes.conf");
    assert!(there.stdout.is_empty(), "something was begun:\n{}", there.stdout);
}

#[track_caller]
fn says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is not said in:\n{said}");
    }
}

#[test]
fn what_stands_in_the_way_of_a_first_install_is_named() {
    if !hq::can_boot("faults of a first install") {
        return;
    }
    let machine = hq::fresh(Release::Bookworm, vec![]);

    // Not root, and settings that cannot be.
    says(&machine.exec("runuser -u nobody -- echoes-appliance install").text(), &["only root", "sudo"]);
    machine
        .put(b"domain = \"a.test\"\n[mlflow]\nprot = 1\n", "/etc/echoes-appliance/config.toml", 0o644)
        .unwrap();
    says(
        &hq::run(&machine, 78, "install"),
        &["/etc/echoes-appliance/config.toml", "line 3", "unknown field `prot`"],
    );
    machine.put(b"domain = \"a.test;\\nserver {}\"\n", "/etc/echoes-appliance/config.toml", 0o644).unwrap();
    says(&hq::run(&machine, 78, "install"), &["line 1", "is not a domain name"]);
    machine.ok("rm -r /etc/echoes-appliance");

    // Somebody else's file, and somebody else's server.
    machine.put(b"theirs\n", "/etc/systemd/system/dashboard.service", 0o644).unwrap();
    says(
        &hq::run(&machine, 1, CHEAP),
        &["/etc/systemd/system/dashboard.service is there already", "move it away"],
    );
    assert_eq!(machine.ok("cat /etc/systemd/system/dashboard.service"), "theirs\n");
    machine.ok("rm /etc/systemd/system/dashboard.service");
    machine.ok("systemd-run -q --unit=shop python3 -m http.server 80; until ss -Hltn | grep -q ':80 '; do sleep 0.1; done");
    says(&hq::run(&machine, 1, CHEAP), &["port 80 is taken by python3 (process ", "try:"]);
    machine.ok("systemctl stop shop");
    untouched(&machine);

    // No network: the lists cannot be fetched, nor the packages.
    machine.ok("ip route save default > /root/route; ip route del default; rm -rf /var/lib/apt/lists/*");
    says(&hq::run(&machine, 1, CHEAP), &["apt-get cannot install", "package mirrors", "run this again"]);
    machine.ok("ip route restore < /root/route");

    // A dpkg that was cut short: finished first, as apt itself would ask for.
    machine.ok("apt-get update -qq && cd /root && apt-get download -qq hello && dpkg --unpack hello_*.deb");
    assert_eq!(machine.ok("dpkg-query -W -f '${db:Status-Status}' hello"), "unpacked");

    // Somebody installs something else for a while; and no locale, no terminal, no input, a strict umask.
    machine.ok(
        "systemd-run -q --unit=upgrade python3 -c \"import fcntl, time; f = open('/var/lib/dpkg/lock-frontend', 'w'); \
         fcntl.lockf(f, fcntl.LOCK_EX); open('/run/held', 'w'); time.sleep(6)\"; until [ -e /run/held ]; do sleep 0.1; done",
    );
    let out = machine.exec(&format!("umask 077; LANG=C LC_ALL=C echoes-appliance {CHEAP} <&-"));
    out.assert_code(0);
    says(&out.stderr, &["waiting for python3 (process ", "which holds the package lock"]);
    says(&out.stdout, &["https://dashboard.localhost/"]);
    assert_eq!(machine.ok("dpkg-query -W -f '${db:Status-Status}' hello"), "installed");
    assert_eq!(hq::run(&machine, 0, "install --service dashboard"), "nothing to change\n");
    assert_eq!(hq::bad_answers(&machine).unwrap(), [""; 0]);

    // A disk without room, met half-way; with room the same command goes on.
    machine.ok("mkdir -p /opt/echoes-appliance && mount -t tmpfs -o size=45m tmpfs /opt/echoes-appliance");
    says(&hq::run(&machine, 1, "install --service docs"), &["because:", "free 2 GB", "run this again"]);
    machine.ok("umount /opt/echoes-appliance");
    let said = hq::run(&machine, 0, "install --service docs");
    says(&said, &["https://docs.localhost/", "https://dashboard.localhost/"]);
    assert_eq!(hq::bad_answers(&machine).unwrap(), [""; 0]);

    // The team's own docs, and the links in its checkout.
    machine.ok("mkdir -p /srv/team/docs /srv/code/logs && echo 'site_name: Team' > /srv/team/mkdocs.yml && \
         echo '# Our own words' > /srv/team/docs/index.md");
    let said = hq::run(&machine, 1, "install --set docs.source=/srv/team --set code.path=/srv/code");
    says(&said, &["/srv/code/logs is there already: a directory"]);
    machine.ok("test -d /srv/code/logs && rmdir /srv/code/logs");
    hq::run(&machine, 0, "install --service docs --set docs.source=/srv/team --set code.path=/srv/code");
    says(&machine.ok("cat /var/www/docs/site/index.html"), &["Our own words"]);
    assert_eq!(machine.ok("readlink /srv/code/tfruns"), "/mnt/echoes_data/tfruns\n");

    // A service switched off goes; the other stays.
    hq::run(&machine, 0, "install --set docs.enabled=false");
    assert_ne!(machine.exec("ls /etc/nginx/sites-enabled/echoes-docs.conf").code, 0);
    assert_ne!(machine.exec("systemctl is-active docs").code, 0);
    assert_eq!(machine.exec("systemctl is-active dashboard").code, 0);
}

#[test]
fn what_happens_to_a_headquarters_is_seen_and_survived() {
    if !hq::can_boot("faults of a headquarters") {
        return;
    }
    let machine = hq::installed(Release::Bookworm);
    let served =
        || machine.ok("cat /etc/nginx/snippets/*.conf /etc/nginx/sites-available/*.conf | sha256sum");
    let first = served();

    // Edited: kept, reported, and replaced only when asked.
    let unit = "/etc/nginx/sites-available/echoes-docs.conf";
    machine.ok(&format!("cp {unit} /root/was; echo '# ours' >> {unit}"));
    says(&hq::run(&machine, 0, "install"), &["was edited and is kept"]);
    assert_eq!(machine.ok(&format!("tail -n 1 {unit}")), "# ours\n");
    let drift = hq::bad_answers(&machine).unwrap();
    assert!(drift.len() == 1 && drift[0].starts_with("\"drift\"") && drift[0].contains(unit), "{drift:?}");
    says(&hq::run(&machine, 0, "plan"), &["edited since we wrote it"]);
    hq::run(&machine, 0, &format!("install --take {unit}"));
    assert_eq!(served(), first);

    // Another site that wants every name, by file and line.
    machine.put(b"server {\n  listen 80 default_server;\n}\n", "/etc/nginx/conf.d/shop.conf", 0o644).unwrap();
    let said = hq::run(&machine, 1, "install --set docs.auth=true");
    says(&said, &["another site claims every name: /etc/nginx/conf.d/shop.conf:2"]);

    // A service is to move to a port that somebody else has: it stays where it is.
    machine.ok("rm /etc/nginx/conf.d/shop.conf; systemd-run -q --unit=shop python3 -m http.server 8090; \
         until ss -Hltn | grep -q ':8090 '; do sleep 0.1; done");
    let said = hq::run(&machine, 1, "install --set docs.port=8090");
    says(&said, &["port 8090, where docs should listen, is taken by python3 (process ", "docs.port="]);
    assert_eq!(hq::run(&machine, 0, "install"), "nothing to change\n");
    machine.ok("systemctl stop shop");

    // A drop-in that nginx refuses: seen on the stage, before anything changed.
    machine.put(b"no_such_directive on;\n", "/etc/nginx/conf.d/shop.conf", 0o644).unwrap();
    let said = hq::run(&machine, 1, "install --set docs.auth=true");
    says(
        &said,
        &["nginx refuses its new configuration", "no_such_directive", "what is served has not changed"],
    );
    assert_eq!(served(), first);
    machine.ok("rm /etc/nginx/conf.d/shop.conf");

    // A route that answers wrongly after the reload: the configuration from before is back, and serves.
    let shadow = "server { listen 443 ssl; server_name dashboard.localhost; \
                  ssl_certificate /var/lib/echoes-appliance/tls/dashboard.localhost/current/fullchain.pem; \
                  ssl_certificate_key /var/lib/echoes-appliance/tls/dashboard.localhost/current/key.pem; return 500; }\n";
    machine.put(shadow.as_bytes(), "/etc/nginx/conf.d/aaa.conf", 0o644).unwrap();
    let said = hq::run(&machine, 1, "install --set docs.auth=true");
    says(&said, &["the configuration from before is back", "asking for https://dashboard.localhost/", "500"]);
    assert_eq!(served(), first);
    machine.ok("rm /etc/nginx/conf.d/aaa.conf; systemctl reload nginx");
    says(&hq::run(&machine, 3, "validate"), &["docs.https"]);
    hq::run(&machine, 0, "install");
    assert_eq!(hq::bad_answers(&machine).unwrap(), [""; 0], "with the fault gone, docs ask for a password");

    // A unit that dies is named with its last words; a killed one comes back by itself.
    machine.ok("systemctl kill -s KILL dashboard; sleep 3; systemctl is-active dashboard");
    machine.ok("rm -r /opt/echoes-appliance/services");
    says(
        &hq::run(&machine, 1, "restart tensorboard"),
        &["running `systemctl restart tensorboard.service`", "journalctl -u tensorboard"],
    );
    hq::run(&machine, 0, "install");
    let bad = hq::bad_answers(&machine).unwrap();
    assert!(bad.iter().all(|row| row.contains("had to be restarted")), "{bad:?}");
    hq::run(&machine, 0, "restart --all");
    assert_eq!(hq::bad_answers(&machine).unwrap(), [""; 0]);

    // The words for machines, and a receipt of a program that is newer.
    let json: serde_json::Value = serde_json::from_str(&machine.ok("echoes-appliance plan --json")).unwrap();
    assert_eq!(json["changes"].as_array().map(Vec::len), Some(0));
    says(
        &machine.ok("echoes-appliance validate --junit"),
        &["<testsuite name=\"validate\"", "failures=\"0\""],
    );
    machine.ok("echo '{\"v\":99,\"at\":0,\"did\":\"new\"}' >> /var/lib/echoes-appliance/receipt.jsonl");
    says(&hq::run(&machine, 1, "install"), &["receipt.jsonl was written by a newer echoes-appliance"]);
}

#[test]
fn status_and_logs_say_what_is_down_and_why() {
    if !hq::can_boot("what status and logs say") {
        return;
    }
    let machine = hq::installed(Release::Bookworm);
    let up = machine.exec("echoes-appliance status --json").json();
    assert_eq!(up["down"], serde_json::json!([]), "{up}");
    let said = hq::run(&machine, 0, "status");
    says(&said, &["renewal ", "tensorboard-proxy ", "on the OS disk, as set"]);

    // nginx itself says why, to the journal as well.
    machine.ok("systemctl stop docs");
    let resolve = format!("docs.localhost:443:{}", machine.ip());
    let curl =
        ["--silent", "--insecure", "--output", "/dev/null", "--resolve", &resolve, "https://docs.localhost/"];
    assert!(Command::new("curl").args(curl).status().unwrap().success());
    says(&hq::run(&machine, 3, "status"), &["inactive"]);
    says(
        &hq::run(&machine, 0, "logs nginx -n 50"),
        &["docs.sock failed (2: No such file or directory)", "docs.localhost"],
    );
    machine.ok("systemctl start docs; systemctl stop nginx echoes-sweep.timer");
    let words = ["inactive: nobody gets in", "inactive: what a run has rented may stay"];
    says(&hq::run(&machine, 3, "status"), &words);
    machine.ok("systemctl start nginx echoes-sweep.timer");
    hq::run(&machine, 0, "status");

    // Who may not read what is to be told is told that, and nothing else is wrong.
    for verb in ["status", "logs mlflow", "plan", "validate"] {
        let refused = machine.exec(&format!("runuser -u nobody -- echoes-appliance {verb}"));
        assert_eq!(refused.code, 1, "{verb} {refused}");
        says(&refused.stderr, &["sudo echoes-appliance"]);
    }
    machine.ok("usermod -aG systemd-journal nobody && runuser -u nobody -- echoes-appliance logs mlflow");

    // `plan` takes what `install` takes first.
    let planned = machine.exec("echoes-appliance plan --domain hq.example.org --email a@b.org --diff");
    assert_eq!(planned.code, 2, "{planned}");
    says(&planned.stdout, &["server_name docs.hq.example.org;"]);
}
