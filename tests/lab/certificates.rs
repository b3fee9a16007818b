//! Certificates of an ACME authority, on whole machines: Pebble before them, and a proxy that spoils its answers.
//! What is counted is counted at the authority.

use kit::{
    acme::{self, Acme, Act, Options, Rule},
    hq,
    lab::{Machine, Release},
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};
use std::time::Instant;

const NAMES: [&str; 4] = ["mlflow.lonel.ai", "tensorboard.lonel.ai", "dashboard.lonel.ai", "docs.lonel.ai"];
const TLS: &str = "/var/lib/echoes-appliance/tls";

/// A headquarters with its own certificates, and an authority that could give it others.
fn begin(story: &str, options: &Options) -> Option<(Machine, Acme)> {
    if !hq::can_boot(story) {
        return None;
    }
    acme::pebble(story)?;
    let machine = hq::installed(Release::Bookworm);
    let acme = Acme::start(&machine, options)?;
    machine.put(acme.vouching.pem.as_bytes(), "/etc/ssl/acme.pem", 0o644).unwrap();
    Some((machine, acme))
}

/// Install under a public name, with this authority.
#[track_caller]
fn install(machine: &Machine, acme: &Acme, more: &str) -> String {
    hq::run(
        machine,
        0,
        &format!(
            "install --domain lonel.ai --email ops@lonel.ai --set tls.directory={} \
             --set tls.ca_file=/etc/ssl/acme.pem --set tls.profile=classic {more}",
            acme.directory()
        ),
    )
}

/// How each certificate stands, by name.
fn status(machine: &Machine) -> Vec<Value> {
    let all = machine.exec("echoes-appliance cert status --json").json();
    all["certificates"].as_array().unwrap().clone()
}

/// What visitors are shown for each name, over IPv4 and IPv6.
fn served(machine: &Machine) -> Vec<String> {
    let ask = "import ssl, socket, hashlib, sys\n\
               for name in sys.argv[1:]:\n\
               \x20 for at in ('127.0.0.1', '::1'):\n\
               \x20   context = ssl._create_unverified_context()\n\
               \x20   with context.wrap_socket(socket.create_connection((at, 443), 5), server_hostname=name) as s:\n\
               \x20     print(name, at, hashlib.sha256(s.getpeercert(True)).hexdigest()[:16])\n";
    let said = machine.exec_fed(&format!("python3 - {}", NAMES.join(" ")), ask.as_bytes());
    said.assert_code(0);
    said.stdout.lines().map(str::to_owned).collect()
}

fn chain(machine: &Machine, name: &str) -> String {
    machine.ok(&format!("cat {TLS}/{name}/current/fullchain.pem"))
}

#[track_caller]
fn all_signed_by(machine: &Machine, whom: &str) {
    for one in status(machine) {
        assert_eq!(one["signed_by"], whom, "{one:#}");
        assert_eq!(one["served_serial"], Value::Null, "{one:#}");
    }
}

#[test]
fn from_the_first_certificate_through_renewals_and_a_reboot() {
    let mut options = Options::default();
    options.profiles.push(("shortlived".into(), 6 * 86400));
    let Some((mut machine, acme)) = begin("a first certificate, and its renewals", &options) else { return };
    let clock = Clock::new();
    let said = install(&machine, &acme, "");
    clock.says("install");
    for name in NAMES {
        assert!(said.contains(&format!("certificate for {name}")), "{said}");
    }
    assert!(!said.contains("of our own authority"), "{said}");
    assert_eq!((acme.issued(), acme.proxy.asked("POST", "/sign-me-up")), (4, 1), "{:#?}", acme.proxy.story());
    all_signed_by(&machine, "private");
    let modes =
        machine.ok(&format!("find {TLS} -name '*.json' -o -name key.pem | xargs stat -c '%a %U' | sort -u"));
    assert_eq!(modes, "600 root\n", "keys and accounts are root's alone");
    assert_eq!(machine.ok("ls -A /var/lib/echoes-appliance/acme/.well-known"), "", "challenges are gone");
    // Privately trusted as it is, it promises nothing.
    assert_eq!(machine.ok(&format!("ls {TLS}/docs.lonel.ai/current/")), "fullchain.pem\nkey.pem\n");
    let bad = hq::bad_answers(&machine).unwrap();
    assert!(bad.is_empty(), "{bad:#?}");
    assert_eq!(hq::run(&machine, 0, "install"), "nothing to change\n");
    assert_eq!(hq::run(&machine, 0, "plan"), "nothing to change\n");
    assert_eq!(acme.proxy.asked("POST", "/order-plz"), 4, "nothing more was ordered");

    // Revoked, in the authority's eyes: the next wake-up replaces that one and no other.
    let window = json!({"suggestedWindow": {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}});
    acme.set_renewal_info(&chain(&machine, NAMES[0]), &window.to_string());
    // As if the authority had asked to be asked again by now.
    machine.ok(&format!(
        "sed -i 's/\"next\": \"[^\"]*\"/\"next\": \"2026-01-01T00:00:00Z\"/' {TLS}/acme/schedule/mlflow*"
    ));
    let before = served(&machine);
    // By the timer itself, whose moment is two hours away at most, and here a second.
    let timer = "/run/systemd/system/echoes-renew.timer.d";
    machine
        .put(b"[Timer]\nOnActiveSec=1s\nRandomizedDelaySec=0\n", &format!("{timer}/now.conf"), 0o644)
        .unwrap();
    machine.ok("systemctl daemon-reload && systemctl restart echoes-renew.timer");
    let since = Instant::now();
    while acme.issued() < 5 {
        assert!(
            since.elapsed().as_secs() < 60,
            "{}",
            machine.ok("journalctl -u 'echoes-renew*' -o cat --no-pager")
        );
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    // Waits for the one that runs.
    machine.ok(&format!("systemctl start echoes-renew.service; rm -r {timer} && systemctl daemon-reload"));
    let after = served(&machine);
    assert_ne!((&before[0], &before[1]), (&after[0], &after[1]), "mlflow's is new, over IPv4 and IPv6");
    assert_eq!(before[2..], after[2..], "the others were not due");
    clock.says("renewed as the authority advised");
    machine.ok("systemctl start echoes-renew.service");
    assert_eq!(acme.issued(), 5, "once");

    machine.reboot().unwrap();
    machine.ok("systemctl start echoes-renew.service");
    assert_eq!(served(&machine), after);
    assert_eq!((acme.issued(), acme.proxy.asked("POST", "/sign-me-up")), (5, 1));
    clock.says("reboot");

    install(&machine, &acme, "--set tls.key_type=ecdsa-p384");
    assert_eq!((acme.issued(), acme.proxy.asked("POST", "/sign-me-up")), (9, 1));
    assert!(status(&machine).iter().all(|one| one["key"] == "P-384"), "{:#?}", status(&machine));
    install(&machine, &acme, "--set tls.shared=true --set tls.profile=shortlived");
    assert_eq!(acme.issued(), 10, "one for all");
    assert!(status(&machine)[0]["days_left"].as_i64().unwrap() < 7, "{:#?}", status(&machine));
    assert_eq!(status(&machine).len(), 1);
    let all: std::collections::BTreeSet<String> =
        served(&machine).iter().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect();
    assert_eq!(all.len(), 1, "every name shows it");
    // One that lost its copy gets another, and nobody is asked.
    machine.ok(&format!("rm -r {TLS}/docs.lonel.ai && systemctl start echoes-renew.service"));
    assert_eq!(acme.issued(), 10);
    all_signed_by(&machine, "private");
    clock.says("key type, profile and grouping changed");

    let said = hq::run(&machine, 0, "cert revoke lonel.ai");
    assert!(said.contains("revoking"), "{said}");
    assert_eq!((acme.issued(), acme.proxy.asked("POST", "/revoke-cert")), (11, 1));
    let bad = hq::bad_answers(&machine).unwrap();
    assert!(bad.is_empty(), "{bad:#?}");
    install(&machine, &acme, "--set tls.mode=internal");
    all_signed_by(&machine, "ours");
    clock.says("revoked, and back to our own");
    hq::run(&machine, 0, "uninstall");
    assert_eq!(machine.ok("ls -d /var/lib/echoes-appliance 2>&1 || true").lines().count(), 1);
    clock.says("uninstall");
}

/// Whatever the authority does: what is served stays, nginx stays up, the person is told, and no more is asked for than
/// need be. Then the authority is well again, and so is everything.
#[test]
fn an_authority_on_a_bad_day() {
    let story = "an authority on a bad day";
    let Some((machine, acme)) = begin(story, &Options { retry_after: 0, ..Options::default() }) else {
        return;
    };
    install(&machine, &acme, "--set tls.shared=true");
    // It would join in.
    machine.ok("systemctl stop echoes-renew.timer echoes-renew-boot.timer");
    let (other, _) = acme.vouching.sign(&[]);
    let mut wrong = Vec::new();
    for row in rows(&other) {
        let clock = Clock::new();
        machine.ok(&format!("rm -rf {TLS}/acme/schedule {TLS}/acme/orders"));
        let (before, signed) = (served(&machine), acme.issued());
        let forgettable = forgettable(&chain(&machine, NAMES[0]));
        acme.proxy.forget();
        acme.proxy.spoil(row.rules.clone());
        let out = machine.exec("echoes-appliance cert renew --force");
        acme.proxy.spoil(Vec::new());
        let said = out.text();
        let mut bad = |why: String| wrong.push(format!("{}: {why}\n{said}", row.what));
        let fails = !row.told.is_empty();
        if out.code != i32::from(fails) {
            bad(format!("ended with {}", out.code));
        }
        for words in row.told.iter().filter(|words| !said.contains(**words)) {
            bad(format!("does not say {words:?}"));
        }
        let now = served(&machine);
        if (now == before) != fails {
            bad(format!("serves {now:?} after {before:?}"));
        }
        if acme.issued() - signed != row.issued {
            bad(format!("{} were signed", acme.issued() - signed));
        }
        // Refused for what it replaces, an order is placed again without that.
        let forgetful = acme.proxy.refused(FORGETFUL);
        if forgetful > usize::from(forgettable) {
            bad(format!("Pebble has forgotten {forgetful} orders that it should know"));
        }
        if acme.proxy.asked("POST", "/order-plz") > row.orders + forgetful {
            bad(format!("too much was asked: {:#?}", acme.proxy.story()));
        }
        if machine.exec("nginx -t -q && systemctl is-active nginx").code != 0 {
            bad("nginx is not well".into());
        }
        if fails {
            let again = machine.exec("echoes-appliance cert renew --force");
            let limited = ["a rate limit", "an order that is to be looked at in an hour"].contains(&row.what);
            if (again.code != 0) != limited {
                bad(format!("afterwards: {}", again.text()));
            }
            if acme.issued() - signed != row.after {
                bad(format!("{} were signed in all", acme.issued() - signed));
            }
        }
        clock.says(row.what);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    machine.ok("systemctl start echoes-renew.timer echoes-renew-boot.timer");
    let bad = hq::bad_answers(&machine).unwrap();
    assert!(bad.is_empty(), "{bad:#?}");
}

/// Pebble's words where it does not find the order of a certificate that is to be replaced.
const FORGETFUL: &str = "could not find an order for the given certificate";

/// Whether Pebble cannot find the order of this certificate. It files one under the number that the serial is, and looks
/// for the bytes that RFC 9773 has of it: where the first bit is set these begin with a zero byte, and are others. Its
/// serials have 63 bits, so that this is so of one in 256.
fn forgettable(chain: &str) -> bool {
    let leaf = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    leaf.raw_serial().starts_with(&[0])
}

#[test]
fn a_certificate_that_pebble_forgets_is_known_by_its_serial() {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = |serial: &[u8]| {
        let mut params = rcgen::CertificateParams::new(vec!["docs.lonel.ai".to_owned()]).unwrap();
        params.serial_number = Some(rcgen::SerialNumber::from_slice(serial));
        params
    };
    for (serial, forgotten) in [(&[0x7f, 1, 2, 3][..], false), (&[0x87, 1, 2, 3], true), (&[1], false)] {
        let pem = params(serial).self_signed(&key).unwrap().pem();
        assert_eq!(forgettable(&pem), forgotten, "{serial:?}");
    }
}

/// A problem document.
fn problem(status: u16, kind: &str, detail: &str) -> Act {
    let body =
        json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail, "status": status});
    let headers = vec![("content-type", "application/problem+json".to_owned())];
    Act::Answer { status, headers, body: body.to_string() }
}

/// With these headers as well.
fn with(act: Act, more: &[(&'static str, &str)]) -> Act {
    match act {
        Act::Answer { status, mut headers, body } => {
            headers.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
            Act::Answer { status, headers, body }
        }
        other => other,
    }
}

/// What goes wrong, and what the person who asked for a certificate is told of it.
struct Row {
    what: &'static str,
    rules: Vec<Rule>,
    /// All of it; none when it ends well all the same.
    told: &'static [&'static str],
    /// How many certificates the authority has signed by then, and how many orders it was asked for at most.
    issued: usize,
    orders: usize,
    /// How many it has signed when it was well again and asked once more.
    after: usize,
}

fn rows(other: &str) -> Vec<Row> {
    let order = "/order-plz";
    let row = |what, rules, told, issued, orders| {
        // An order is gone on with, unless what came of it cannot be used.
        let after = match what {
            "a rate limit" => 0,
            "somebody else's certificate" | "half a certificate" => 2,
            _ => 1,
        };
        Row { what, rules, told, issued, orders, after }
    };
    let always = Rule::always;
    let html = Act::Answer { status: 503, headers: vec![], body: "<h1>Sorry</h1>".into() };
    let date = |ahead: i64| {
        let at = time::OffsetDateTime::now_utc() + time::Duration::seconds(ahead);
        let form = time::macros::format_description!(
            "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
        );
        Act::With("date", at.format(form).unwrap())
    };
    let bad_nonce = || problem(400, "badNonce", "JWS has an invalid anti-replay nonce");
    vec![
        row("a nonce is rejected seven times", vec![Rule { times: 7, ..always("POST", order, bad_nonce()) }], &[], 1, 8),
        row(
            "a nonce is rejected seven times at each step",
            vec![
                Rule { times: 7, ..always("POST", "/authZ/", bad_nonce()) },
                Rule { times: 7, ..always("POST", "/chalZ/", bad_nonce()) },
                Rule { times: 7, ..always("POST", "/finalize-order/", bad_nonce()) },
                Rule { times: 7, ..always("POST", "/certZ/", bad_nonce()) },
            ],
            &[],
            1,
            1,
        ),
        row("nonces are rejected for ever", vec![always("POST", order, bad_nonce())], &["anti-replay", "(badNonce)"], 0, 15),
        row(
            "a rate limit",
            vec![always("POST", order, with(
                problem(429, "rateLimited", "too many certificates already issued, retry after 2126-11-24 08:15:04 UTC"),
                &[("retry-after", "3600")],
            ))],
            &["too many certificates already issued", "(rateLimited)", "tried again by itself"],
            0,
            1,
        ),
        row("an error page for a directory", vec![always("GET", "/dir", html.clone())], &["answered 503: <h1>Sorry</h1>"], 0, 0),
        row(
            "no room for new orders",
            vec![always("POST", order, problem(503, "serverInternal", "Service busy; retry later."))],
            &["answered 503: Service busy"],
            0,
            1,
        ),
        row("something else than a directory", vec![always("GET", "/dir", Act::Body("<html>Welcome".into()))],
            &["something else than ACME: <html>Welcome"], 0, 0),
        row("an authority that never answers",
            vec![always("POST", order, Act::Delay(std::time::Duration::from_secs(120)))],
            &["did not answer within 30 s"], 0, 1),
        row("a connection that breaks at the order", vec![always("POST", order, Act::Reset)], &["/order-plz"], 0, 1),
        row("an order whose answer is lost", vec![Rule::once("POST", order, Act::ResetAfter)], &["/order-plz"], 0, 1),
        row("a finalization that fails once", vec![
            Rule::once("POST", "/finalize-order/", problem(500, "serverInternal", "oops"))], &[], 1, 1),
        row("a finalization whose answer is lost", vec![
            Rule::once("POST", "/finalize-order/", Act::ResetAfter)], &[], 1, 1),
        row("connections that break while the order is looked at", vec![
            Rule { times: 2, ..always("POST", "/my-order/", Act::Reset) }], &[], 1, 1),
        row("a certificate whose way here breaks twice", vec![
            Rule { times: 2, ..always("POST", "/certZ/", Act::ResetAfter) }], &[], 1, 1),
        row("CAA, as the order says it", vec![
            always("POST", "/my-order/", Act::Json(|order| {
                order["status"] = "invalid".into();
                order["error"] = json!({"type": "urn:ietf:params:acme:error:caa", "detail": "CAA record for lonel.ai prevents issuance"});
            }))],
            &["CAA record for lonel.ai prevents issuance", "(caa)", "change the CAA record"], 0, 1),
        row("CAA, as only the name's challenge says it", vec![
            always("POST", "/my-order/", Act::Json(|order| order["status"] = "invalid".into())),
            always("POST", "/authZ/", Act::Json(|authz| {
                authz["status"] = if authz["status"] == "valid" { "invalid".into() } else { authz["status"].clone() };
                authz["challenges"][0]["error"] = json!({"type": "urn:ietf:params:acme:error:caa", "detail": "CAA says no"});
            }))],
            &["docs.lonel.ai: CAA says no (caa)", "change the CAA record"], 0, 1),
        row("somebody else's certificate", vec![always("POST", "/certZ/", Act::Body(other.into()))],
            &["what came is not to be used", "the key is not the certificate's"], 1, 1),
        row("half a certificate", vec![always("POST", "/certZ/", Act::Truncate(700))],
            &["what came is not to be used"], 1, 1),
        row("an account that is not known", vec![
            always("POST", order, problem(400, "accountDoesNotExist", "unable to find existing account"))],
            &["unable to find existing account", "(accountDoesNotExist)"], 0, 2),
        row("an account that was deactivated", vec![
            always("POST", order, problem(403, "unauthorized", "account is deactivated"))],
            &["account is deactivated", "(unauthorized)"], 0, 2),
        row("terms that have changed", vec![
            always("POST", order, with(
                problem(403, "userActionRequired", "Terms of service have changed"),
                &[("link", "<https://authority.example/terms>;rel=\"terms-of-service\"")],
            ))],
            &["Terms of service have changed", "https://authority.example/terms", "agree to the authority's new terms"], 0, 1),
        row("a name that is not signed for", vec![
            always("POST", order, Act::Answer { status: 400, headers: vec![], body: json!({
                "type": "urn:ietf:params:acme:error:rejectedIdentifier", "detail": "order refused",
                "subproblems": [{"type": "urn:ietf:params:acme:error:rejectedIdentifier", "detail": "policy forbids it",
                    "identifier": {"type": "dns", "value": "docs.lonel.ai"}}]}).to_string() })],
            &["docs.lonel.ai: policy forbids it (rejectedIdentifier)"], 0, 1),
        row("a certificate that was replaced already", vec![
            Rule::once("POST", order, problem(409, "alreadyReplaced", "replaced before"))],
            &[], 1, 2),
        row("a certificate that cannot be replaced, and a name that is not signed for", vec![
            Rule::once("POST", order, problem(500, "serverInternal", "cannot find what it replaces")),
            always("POST", order, problem(400, "rejectedIdentifier", "policy forbids it"))],
            &["(ordered without naming what it replaces: ", "cannot find what it replaces", "policy forbids it (rejectedIdentifier)"], 0, 2),
        row("an order that forgets what it replaces", vec![
            Rule::once("POST", order, Act::Json(|order| drop(order.as_object_mut().unwrap().remove("replaces"))))],
            &[], 1, 2),
        row("a profile that is ignored", vec![
            always("POST", "order", Act::Json(|order| drop(order.as_object_mut().unwrap().remove("profile"))))],
            &[], 1, 1),
        row("a clock that is two hours slow", vec![always("GET", "/dir", date(7200)), always("HEAD", "/", date(7200))],
            &[" s behind", "timedatectl"], 0, 0),
        row("a clock that is fifty days fast", vec![always("GET", "/dir", date(-50 * 86400))],
            &["s ahead of"], 0, 0),
        // The last: an order that was signed and is lost spoils what can be replaced.
        row("an order that is to be looked at in an hour", vec![
            always("POST", "/my-order/", Act::Json(|order| if order["status"] == "valid" { order["status"] = "processing".into() })),
            always("POST", "/finalize-order/", Act::With("retry-after", "3600".into()))],
            &["is processing", "tried again by itself"], 1, 1),
    ]
}

/// Every file of ours is synced before anybody acts on it: so these are the steps, and a kill at each of them is a kill
/// between every two things that are done.
#[test]
fn killed_anywhere_one_certificate_is_paid_for() {
    let story = "killed anywhere while a certificate is obtained";
    let Some((machine, acme)) = begin(story, &Options { retry_after: 0, ..Options::default() }) else {
        return;
    };
    hq::mortal(&machine);
    // Our own certificates, under the public name, with everything else installed.
    install(&machine, &acme, "--set tls.shared=true --set tls.mode=internal");
    hq::run(&machine, 0, "install --set tls.mode=auto --set tls.directory=https://127.0.0.1:1/nobody");
    machine.ok("systemctl stop echoes-renew.timer echoes-renew-boot.timer");
    machine.ok(&format!(
        "sed -i 's|https://127.0.0.1:1/nobody|{}|' /etc/echoes-appliance/config.toml",
        acme.directory()
    ));
    machine.ok(&format!("rm -rf {TLS}/acme && cp -a {TLS} /root/tls"));
    let clock = Clock::new();
    let mut kills = 0;
    for at in 1.. {
        let signed = acme.issued();
        let out = machine.exec(&format!("{} echoes-appliance cert renew", hq::die_at("fsync", at)));
        let killed = out.code == 137;
        assert!(killed || out.code == 0, "killed at step {at}: {}", out.text());
        assert_eq!(
            machine.exec("systemctl is-active nginx && nginx -t -q").code,
            0,
            "nginx after a kill at {at}"
        );
        assert_eq!(served(&machine).len(), 8, "every name is answered after a kill at {at}");
        // What a machine that lost its power finds: the timer's service, or a person.
        let said = hq::run(&machine, 0, "cert renew");
        assert_eq!(acme.issued() - signed, 1, "after a kill at step {at}, and then:\n{said}");
        all_signed_by(&machine, "private");
        assert_eq!(machine.ok(&format!("ls {TLS}/acme/orders")), "", "no order is left after a kill at {at}");
        if !killed {
            break;
        }
        kills += 1;
        // Back to before, and nginx with it.
        machine.ok(&format!(
            "rm -rf {TLS}/* && cp -a /root/tls/. {TLS}/ && systemctl reload nginx && rm -rf {TLS}/acme"
        ));
    }
    clock.says(&format!("{kills} kills"));
    assert!(kills > 20, "every synced file is a step, and there are more than {kills}");
    machine.ok("systemctl start echoes-renew.timer echoes-renew-boot.timer");
    let bad = hq::bad_answers(&machine).unwrap();
    assert!(bad.is_empty(), "{bad:#?}");
}

/// Another authority's software, which shares no line with Pebble's: it validates while it is being told, knows neither
/// profiles nor renewal information, and keeps its accounts when it is restarted.
#[test]
fn another_authority_signs_as_well() {
    let story = "certificates of another authority";
    if !hq::can_boot(story) {
        return;
    }
    let Some(caddy) = acme::caddy(story) else { return };
    let mut machine = hq::installed(Release::Bookworm);
    machine.push(&caddy, "/usr/local/bin/caddy", 0o755).unwrap();
    machine.put(CADDYFILE.as_bytes(), "/etc/caddy.conf", 0o644).unwrap();
    machine.put(CADDY_SERVICE.as_bytes(), "/etc/systemd/system/authority.service", 0o644).unwrap();
    let names = format!("echo '127.0.0.1 acme.localhost {}' >> /etc/hosts", NAMES.join(" "));
    machine.ok(&names);
    machine.ok("systemctl daemon-reload && systemctl enable --now authority.service");
    let root = "/var/lib/authority/pki/authorities/local/root.crt";
    machine.ok(&format!(
        "for n in $(seq 100); do [ -e {root} ] && break; sleep 0.1; done; cp {root} /etc/ssl/acme.pem"
    ));
    let clock = Clock::new();
    let directory = "https://acme.localhost:15443/acme/acmetest/directory";
    let said = hq::run(
        &machine,
        0,
        &format!(
            "install --domain lonel.ai --set tls.directory={directory} --set tls.ca_file=/etc/ssl/acme.pem"
        ),
    );
    assert!(
        !said.contains("warning: no certificate"),
        "{said}\n{}",
        machine.ok("journalctl -u authority -n 20 --no-pager")
    );
    all_signed_by(&machine, "private");
    clock.says("install");
    let account = machine.ok(&format!("cat {TLS}/acme/accounts/*.json"));
    machine.reboot().unwrap();
    machine.ok(&names);
    let before = served(&machine);
    hq::run(&machine, 0, "cert renew --force docs.lonel.ai");
    let after = served(&machine);
    assert_eq!(before[..6], after[..6]);
    assert_ne!(before[6..], after[6..], "docs' is new");
    assert_eq!(machine.ok(&format!("cat {TLS}/acme/accounts/*.json")), account, "the account is kept");
    clock.says("renewed after a reboot");
    // It fails a name while it is being told that the name is ready.
    machine.ok("sed -i 's/127.0.0.1 acme.localhost .*/127.0.0.1 acme.localhost/; $ a 10.213.77.250 docs.lonel.ai' /etc/hosts");
    // It believes what it read of that file for five seconds.
    machine.ok("sleep 6");
    let said = hq::run(&machine, 1, "cert renew --force docs.lonel.ai");
    assert!(said.contains("docs.lonel.ai: ") && said.contains("try:"), "{said}");
    assert_eq!(served(&machine), after);
    let said = hq::run(&machine, 0, "cert status");
    assert!(said.contains("attempt 1 in a row"), "{said}");
}

const CADDYFILE: &str = "\
{
	admin off
	auto_https disable_redirects
	skip_install_trust
	storage file_system /var/lib/authority
	http_port 15080
	https_port 15443
	pki {
		ca acmetest {
			name test
			root_cn test
			intermediate_cn test
		}
	}
}
https://acme.localhost:15443 {
	bind 127.0.0.1
	tls internal
	acme_server {
		ca acmetest
	}
}
";

const CADDY_SERVICE: &str = "\
[Service]
Environment=HOME=/var/lib/authority XDG_DATA_HOME=/var/lib/authority
StateDirectory=authority
ExecStart=/usr/local/bin/caddy run --config /etc/caddy.conf --adapter caddyfile
[Install]
WantedBy=multi-user.target
";

/// What goes wrong on this side: nginx, the disk, DNS, a port. As above: nothing that is served changes, the person is
/// told, and nothing is paid for twice.
#[test]
fn a_machine_on_a_bad_day() {
    let story = "a machine on a bad day";
    let Some((machine, acme)) = begin(story, &Options { retry_after: 0, ..Options::default() }) else {
        return;
    };
    install(&machine, &acme, "--set tls.shared=true");
    machine.ok("systemctl stop echoes-renew.timer echoes-renew-boot.timer");
    let renew = |code: i32| {
        let before = served(&machine);
        let said = hq::run(&machine, code, "cert renew --force");
        assert_eq!(served(&machine) == before, code != 0, "{said}");
        said
    };
    let afresh = || drop(machine.ok(&format!("rm -rf {TLS}/acme/schedule {TLS}/acme/orders")));

    // nginx would not start with this: so nothing new is loaded, and the certificate from before is back.
    machine.put(b"nonsense;\n", "/etc/nginx/conf.d/zz.conf", 0o644).unwrap();
    let said = renew(1);
    assert!(said.contains("nonsense") && said.contains("the certificate from before is back"), "{said}");
    machine.ok("rm /etc/nginx/conf.d/zz.conf && nginx -t -q && systemctl is-active nginx");
    let signed = acme.issued();
    renew(0);
    assert_eq!(acme.issued(), signed, "the one that came is used: no other is paid for");

    // No room for what must be remembered: nothing is asked for. None for what came: the old one stays.
    afresh();
    machine.ok(&format!(
        "mkdir -p {TLS}/acme/orders && mount -t tmpfs -o size=4k,nr_inodes=1 none {TLS}/acme/orders"
    ));
    let signed = acme.issued();
    let said = renew(1);
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(acme.issued(), signed, "nothing was signed whose key could not be kept");
    machine.ok(&format!("umount {TLS}/acme/orders"));
    afresh();
    let docs = format!("{TLS}/docs.lonel.ai");
    machine.ok(&format!(
        "cp -a {docs} /root/docs && mount -t tmpfs -o nr_inodes=30 none {docs} && cp -a /root/docs/. {docs}/"
    ));
    machine.ok(&format!("n=0; while touch {docs}/fill.$n 2>/dev/null; do n=$((n+1)); done; nginx -t -q"));
    let said = renew(1);
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(machine.exec("nginx -t -q && systemctl is-active nginx").code, 0);
    machine.ok(&format!("umount {docs}"));
    let signed = acme.issued();
    renew(0);
    assert_eq!(acme.issued(), signed, "the one that came is used");

    // One name of four that does not lead here; then a port that nobody answers.
    for (call, body, back) in [
        ("set-servfail", json!({"host": "docs.lonel.ai"}), "clear-servfail"),
        ("add-a", json!({"host": "docs.lonel.ai", "addresses": ["127.0.0.9"]}), "clear-a"),
    ] {
        afresh();
        if call == "add-a" {
            acme.dns("add-aaaa", &json!({"host": "docs.lonel.ai", "addresses": ["::1"]}));
        }
        acme.dns(call, &body);
        let said = renew(1);
        assert!(
            said.contains("docs.lonel.ai: ") && said.contains("let every name lead to this machine"),
            "{said}"
        );
        assert!(said.contains("tls.shared = false lets the other names"), "{said}");
        for name in &NAMES[..3] {
            assert!(!said.contains(&format!("; {name}: ")), "{said}");
        }
        acme.dns(back, &json!({"host": "docs.lonel.ai"}));
    }
    acme.dns("clear-aaaa", &json!({"host": "docs.lonel.ai"}));

    // Renewal information that is none: nobody is bothered, and nothing is renewed for it.
    for answer in [
        "junk",
        "{}",
        r#"{"suggestedWindow": {"start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"}}"#,
    ] {
        afresh();
        acme.set_renewal_info(&chain(&machine, NAMES[0]), answer);
        let signed = acme.issued();
        machine.ok("systemctl start echoes-renew.service");
        assert_eq!(acme.issued(), signed, "{answer}");
    }

    // A profile that the authority does not have is not even asked for.
    renew(0);
    acme.proxy.forget();
    let said = hq::run(&machine, 0, "install --set tls.profile=nosuch");
    assert!(
        said.contains("it has no profile nosuch, but classic") && said.contains("set tls.profile"),
        "{said}"
    );
    assert_eq!(acme.proxy.asked("POST", "/order-plz"), 0);
    hq::run(&machine, 0, "install --set tls.profile=classic");
    let bad = hq::bad_answers(&machine).unwrap();
    assert!(bad.is_empty(), "{bad:#?}");
}

/// An authority that knows its customers, and one that takes proofs over from earlier orders.
#[test]
fn an_authority_that_knows_its_customers() {
    let kid =
        ("kid-1".to_owned(), "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W".to_owned());
    let options = Options { eab: Some(kid), reuse: 100, retry_after: 0, ..Options::default() };
    let Some((machine, acme)) = begin("external account binding", &options) else { return };
    let said = install(&machine, &acme, "--set tls.shared=true");
    assert!(said.contains("(externalAccountRequired)") && said.contains("set tls.eab_kid"), "{said}");
    assert!(said.contains("The headquarters is up"), "{said}");
    all_signed_by(&machine, "ours");
    let bad = hq::bad_answers(&machine).unwrap();
    assert!(bad.is_empty(), "our own stands in, and that is a warning: {bad:#?}");
    machine
        .put(b"zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W\n", "/etc/eab.key", 0o600)
        .unwrap();
    install(&machine, &acme, "--set tls.eab_kid=kid-1 --set tls.eab_key_file=/etc/eab.key");
    all_signed_by(&machine, "private");
    assert_eq!(acme.issued(), 1);
    let proofs = acme.proxy.asked("POST", "/chalZ/");
    hq::run(&machine, 0, "cert renew --force");
    assert_eq!(
        (acme.issued(), acme.proxy.asked("POST", "/chalZ/")),
        (2, proofs),
        "nothing had to be proven again"
    );
    assert_eq!(acme.proxy.asked("POST", "/sign-me-up"), 2, "once refused, once made");

    // The same authority as this machine's own list has it: now it is publicly trusted, as far as this machine knows.
    let root = acme.root();
    machine.put(root.as_bytes(), "/usr/local/share/ca-certificates/pebble.crt", 0o644).unwrap();
    machine.ok("update-ca-certificates");
    hq::run(&machine, 0, "cert renew --force");
    all_signed_by(&machine, "public");
    let hsts = machine.ok(&format!("cat {TLS}/docs.lonel.ai/current/hsts.conf"));
    assert!(hsts.contains("max-age=15552000"), "{hsts}");
    let said = machine.exec_fed("python3 -", HSTS.as_bytes());
    assert_eq!(said.stdout, "max-age=15552000\n", "{}", said.text());
    // Back to our own: the promise goes with the certificate.
    hq::run(&machine, 0, "install --set tls.mode=internal");
    let said = machine.exec_fed("python3 -", HSTS.as_bytes());
    assert_eq!(said.stdout, "None\n", "{}", said.text());
}

/// What a browser would read.
const HSTS: &str = "\
import ssl, socket
context = ssl._create_unverified_context()
s = context.wrap_socket(socket.create_connection(('127.0.0.1', 443), 5), server_hostname='docs.lonel.ai')
s.sendall(b'GET / HTTP/1.1\\r\\nHost: docs.lonel.ai\\r\\nConnection: close\\r\\n\\r\\n')
head = b''
while b'\\r\\n\\r\\n' not in head:
    head += s.recv(4096)
lines = [l.split(': ', 1)[1] for l in head.decode(errors='replace').split('\\r\\n') if l.lower().startswith('strict-transport-security: ')]
print(lines[0] if lines else None)
";

/// How long each part takes, for who wants to make it shorter.
struct Clock(Instant);

impl Clock {
    fn new() -> Self {
        Self(Instant::now())
    }

    fn says(&self, what: &str) {
        eprintln!("{:6.1} s: {what}", self.0.elapsed().as_secs_f64());
    }
}
