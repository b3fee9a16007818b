//! Each way to be somebody, against services that know us or do not.

use super::{
    super::{
        Azure, Settings,
        clock::Wall,
        credential::{Secret, Source},
    },
    stage::settings,
};
use crate::{
    gpu::provider::Provider as _,
    host::{Cmd, Exec, Host, Output, System},
};
use anyhow::Result;
use kit::cloud::{Cloud, Options};
use std::{path::Path, sync::Arc};

/// `az`, with somebody logged in.
struct Az(String);

impl Exec for Az {
    fn exec(&self, cmd: &Cmd, _: &mut dyn FnMut(&str)) -> Result<Output> {
        let expected = "az account get-access-token -o json --scope https://management.azure.com/.default";
        assert_eq!(cmd.to_string(), expected);
        Ok(Output { stdout: self.0.clone(), ..Output::default() })
    }
}

fn list(cloud: &Cloud, sources: Vec<Source>, host: Host, change: impl FnOnce(&mut Settings)) -> Result<()> {
    let mut settings = settings(cloud);
    settings.subscription = Some(cloud.subscription());
    change(&mut settings);
    Azure::new(settings, "hq-1", sources, Arc::new(host), Arc::new(Wall))?.list().map(drop)
}

#[test]
fn whoever_we_are_we_are_let_in() {
    let Some(cloud) = Cloud::start(Options::default()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let host = || Host::new(dir.path(), System);
    let us = cloud.principal();
    let (tenant, client) = (us.tenant, us.client);
    host().write(Path::new("/token"), 0o600, format!("{}\n", us.secret).as_bytes()).unwrap();
    let good = [
        Source::Secret {
            tenant: tenant.clone(),
            client: client.clone(),
            secret: Secret::new(us.secret.clone()),
        },
        Source::Workload { tenant: tenant.clone(), client: client.clone(), file: "/token".into() },
        Source::Managed { client: None },
        Source::Managed { client: Some(client.clone()) },
    ];
    for source in good {
        list(&cloud, vec![source.clone()], host(), |_| {}).unwrap_or_else(|e| panic!("{source}: {e:#}"));
    }
    // The same over TLS, where only the authority that was named is believed.
    let secret = || Source::Secret {
        tenant: tenant.clone(),
        client: client.clone(),
        secret: Secret::new(us.secret.clone()),
    };
    let tls = |settings: &mut Settings| {
        settings.endpoint.clone_from(&cloud.secure().arm);
        settings.login.clone_from(&cloud.secure().login);
        settings.roots = Some(cloud.ca().into());
    };
    list(&cloud, vec![secret()], host(), tls).unwrap();
    let unknown = list(&cloud, vec![secret()], host(), |settings| {
        tls(settings);
        settings.login = cloud.login().into();
        settings.roots = Some(Cloud::start(Options::default()).unwrap().ca().into());
    });
    assert!(format!("{:#}", unknown.unwrap_err()).contains("certificate"));
    let open = list(&cloud, vec![secret()], host(), |settings| settings.endpoint = "http://10.0.0.1".into());
    assert_eq!(open.unwrap_err().to_string(), "http://10.0.0.1 is not reached by https");
    cloud.assert_honest();
}

#[test]
fn the_next_is_tried_and_all_are_named_when_none_lets_us_in() {
    let Some(cloud) = Cloud::start(Options { headquarters: false, ..Options::default() }) else { return };
    let dir = tempfile::tempdir().unwrap();
    let az = |answer: &str| Host::new(dir.path(), Az(answer.into()));
    let all = || vec![Source::Managed { client: None }, Source::Cli { tenant: None }];
    let error = |answer: &str| format!("{:#}", list(&cloud, all(), az(answer), |_| {}).unwrap_err());
    let text = error("{}");
    assert_eq!(
        text,
        "logging in to Azure: this machine's managed identity: no identity is assigned to this machine; \
         az: az is older than 2.54"
    );
    // What az hands over is used as it is, and said nowhere.
    let text = error(r#"{"accessToken": "hush", "expires_on": 4102444800}"#);
    assert!(text.contains("AuthenticationFailed") && !text.contains("hush"), "{text}");
}
