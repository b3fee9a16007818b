//! The program itself before a simulated Azure, from `gpu-run` to the receipt.

// Tests look at files and processes directly, and each uses a part of this.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, dead_code)]

use crate::{
    cloud::{Cloud, Options},
    here::Here,
};
use std::{
    fs,
    process::{Command, Output},
    time::Duration,
};

pub const T4: &str = "Standard_NC4as_T4_v3";

pub fn words(out: &[u8]) -> String {
    String::from_utf8_lossy(out).into_owned()
}

pub struct Story {
    pub cloud: Cloud,
    pub here: Here,
    /// A directory that machines have, for the script to count in.
    there: String,
}

impl Story {
    /// None, and said so, where Microsoft's documents are not beside the project.
    pub fn new(here: Here, port: u16, there: &str, options: Options) -> Option<Self> {
        // Time may go faster in the cloud than for who keeps its tokens.
        let cloud = Cloud::start(Options { token: Duration::from_secs(24 * 3600), ..options })?;
        let settings = format!(
            "[gpu.azure]\nsubscription = {:?}\nendpoint = {:?}\nlogin = {:?}\nmetadata = {:?}\nprices = {:?}\n\
             audience = \"https://management.azure.com\"\nssh_port = {port}\n",
            cloud.subscription(),
            cloud.arm(),
            cloud.login(),
            cloud.imds(),
            cloud.prices(),
        );
        fs::write(here.path("c.toml"), settings).unwrap();
        Some(Self { cloud, here, there: there.into() })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let (config, principal) = (self.here.path("c.toml"), self.cloud.principal());
        let first = ["--config", config.to_str().unwrap()];
        let mut command = self.here.command(&[&first, arguments].concat());
        command
            .env("AZURE_TENANT_ID", principal.tenant)
            .env("AZURE_CLIENT_ID", principal.client)
            .env("AZURE_CLIENT_SECRET", principal.secret);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn gpu_run(&self, name: &str, more: &[&str]) -> Output {
        let script = self.here.path("code/train.py");
        let first =
            ["gpu-run", script.to_str().unwrap(), "--provider", "azure", "--name", name, "--vm-size", T4];
        let last = ["--", &self.there, "2"];
        self.run(&[&first, more, &last].concat())
    }

    /// Rented, sent to, run, brought home, given back, and proven gone.
    pub fn runs_to_its_receipt(&self) {
        self.runs_to_its_receipt_with(&[]);
    }

    pub fn runs_to_its_receipt_with(&self, more: &[&str]) {
        let begun = self.gpu_run("esn", &[&["-y", "--detach", "--secret", "API_KEY"], more].concat());
        assert_eq!(begun.status.code(), Some(0), "{}", words(&begun.stderr));
        for event in ["rented", "prepared", "started", "exited", "fetched", "returned"] {
            self.here.until(event, || self.here.events("esn").iter().any(|one| one == event));
        }
        let attached = self.run(&["gpu", "attach", "esn"]);
        let (said, result) = (words(&attached.stderr), words(&attached.stdout));
        assert_eq!(attached.status.code(), Some(7), "{said}{result}");
        assert!(said.contains("gone: all of it, looked for twice") && said.contains(T4), "{said}");
        assert_eq!(self.here.result("esn", "step1.txt").as_deref(), Some("loss 1"));
        assert!(self.here.result("esn", "log.txt").unwrap().contains("trained on esn\n"));

        assert_eq!(self.cloud.left(), Vec::<String>::new(), "{}", self.cloud.story());
        self.cloud.assert_honest();
        let receipt = self.run(&["gpu", "cost", "esn", "--json"]);
        let receipt: serde_json::Value = serde_json::from_slice(&receipt.stdout).unwrap();
        assert_eq!(
            (&receipt["proven_gone"], &receipt["all_home"]),
            (&true.into(), &true.into()),
            "{receipt}"
        );
        assert!(receipt["cost"].as_u64().unwrap() > 0, "{receipt}");
        let sweep = self.run(&["gpu", "sweep"]);
        assert_eq!((sweep.status.code(), words(&sweep.stderr).as_str()), (Some(0), "nothing is loose\n"));
    }
}
