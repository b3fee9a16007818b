//! Somebody who asks the simulated cloud, by hand and without a thought: what is under test is the cloud.

use crate::cloud::Cloud;
use serde_json::{Value, json};

#[derive(Clone)]
pub struct Client {
    pub http: reqwest::Client,
    pub base: String,
    pub subscription: String,
    pub token: String,
}

pub struct Told {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Told {
    /// Of an error; nothing for what is none.
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl Client {
    pub async fn new(cloud: &Cloud) -> Self {
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let principal = cloud.principal();
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &principal.client),
            ("client_secret", &principal.secret),
            ("scope", "https://management.azure.com/.default"),
        ];
        let form = reqwest::Url::parse_with_params("http://form/", form).unwrap();
        let told: Value = http
            .post(format!("{}/{}/oauth2/v2.0/token", cloud.login(), principal.tenant))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.query().unwrap().to_owned())
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        let token = told["access_token"].as_str().unwrap_or_else(|| panic!("no token: {told}")).to_owned();
        Self { http, base: cloud.arm().to_owned(), subscription: cloud.subscription(), token }
    }

    /// Of something in a group; of the group itself if it is nothing.
    pub fn path(&self, group: &str, thing: &str, version: &str) -> String {
        let group = format!("/subscriptions/{}/resourceGroups/{group}", self.subscription);
        match thing {
            "" => format!("{group}?api-version={version}"),
            thing => format!("{group}/providers/{thing}?api-version={version}"),
        }
    }

    pub async fn attempt(&self, method: &str, path: &str, body: Option<&Value>) -> reqwest::Result<Told> {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.base) };
        let mut request = self.http.request(method.parse().unwrap(), url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = answer.text().await?;
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        Ok(Told { status, headers, body })
    }

    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Told {
        self.attempt(method, path, body).await.unwrap()
    }

    pub async fn get(&self, url: &str) -> Told {
        self.call("GET", url, None).await
    }

    pub async fn group(&self, name: &str, tags: Value) {
        let body = json!({"location": "eastus", "tags": tags});
        let told = self.call("PUT", &self.path(name, "", "2024-07-01"), Some(&body)).await;
        assert_eq!(told.status, 201, "{}", told.body);
    }

    pub async fn try_put_machine(&self, group: &str, name: &str, body: &Value) -> reqwest::Result<Told> {
        let thing = format!("Microsoft.Compute/virtualMachines/{name}");
        self.attempt("PUT", &self.path(group, &thing, "2024-07-01"), Some(body)).await
    }

    pub async fn put_machine(&self, group: &str, name: &str, body: &Value) -> Told {
        self.try_put_machine(group, name, body).await.unwrap()
    }

    pub async fn delete_machine(&self, group: &str, name: &str) -> Told {
        let thing = format!("Microsoft.Compute/virtualMachines/{name}");
        self.call("DELETE", &self.path(group, &thing, "2024-07-01"), None).await
    }

    /// All of a list of the subscription's, however many pieces it comes in.
    pub async fn rows(&self, list: &str, filter: &str) -> Vec<Value> {
        let version = if list.ends_with("/skus") { "2021-07-01" } else { "2024-07-01" };
        let mut next =
            Some(format!("/subscriptions/{}{list}?api-version={version}{filter}", self.subscription));
        let mut rows = Vec::new();
        while let Some(at) = next {
            let told = self.get(&at).await;
            assert_eq!(told.status, 200, "{}", told.body);
            rows.extend(told.body["value"].as_array().cloned().unwrap());
            next = told.body["nextLink"].as_str().map(str::to_owned);
        }
        rows
    }

    pub async fn imds(&self, url: &str) -> Value {
        let told = self.http.get(url).header("Metadata", "true").send().await.unwrap();
        assert_eq!(told.status(), 200);
        told.json().await.unwrap()
    }
}

/// A machine with a disk, an interface and an address that come and go with it.
pub fn machine(cloud: &Cloud, name: &str) -> Value {
    json!({
        "location": "eastus",
        "properties": {
            "hardwareProfile": {"vmSize": "Standard_NC4as_T4_v3"},
            "storageProfile": {
                "imageReference": {
                    "publisher": "microsoft-dsvm",
                    "offer": "ubuntu-hpc",
                    "sku": "2204",
                    "version": "latest",
                },
                "osDisk": {
                    "createOption": "FromImage",
                    "deleteOption": "Delete",
                    "managedDisk": {"storageAccountType": "Premium_LRS"},
                },
            },
            "osProfile": {
                "computerName": name,
                "adminUsername": "echoes",
                "customData": "I2Nsb3VkLWNvbmZpZwo=",
                "linuxConfiguration": {
                    "disablePasswordAuthentication": true,
                    "ssh": {"publicKeys": [{
                        "path": "/home/echoes/.ssh/authorized_keys",
                        "keyData": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1l2m0n3o4p5q6r7s8t9u0v1w2x3y4z5a6b7c8d9e0f test",
                    }]},
                },
            },
            "networkProfile": {
                "networkApiVersion": "2020-11-01",
                "networkInterfaceConfigurations": [{
                    "name": format!("{name}-nic"),
                    "properties": {
                        "primary": true,
                        "deleteOption": "Delete",
                        "ipConfigurations": [{
                            "name": "ipconfig1",
                            "properties": {
                                "subnet": {"id": cloud.subnet()},
                                "publicIPAddressConfiguration": {
                                    "name": format!("{name}-ip"),
                                    "sku": {"name": "Standard"},
                                    "properties": {
                                        "deleteOption": "Delete",
                                        "publicIPAllocationMethod": "Static",
                                    },
                                },
                            },
                        }],
                    },
                }],
            },
        },
    })
}

/// An interface in the headquarters' network.
pub fn nic(cloud: &Cloud) -> Value {
    json!({
        "location": "eastus",
        "properties": {"ipConfigurations": [{
            "name": "ipconfig1",
            "properties": {"subnet": {"id": cloud.subnet()}},
        }]},
    })
}

/// Take a property out, wherever it is.
pub fn strip(value: &mut Value, key: &str) {
    match value {
        Value::Object(object) => {
            object.remove(key);
            object.values_mut().for_each(|value| strip(value, key));
        }
        Value::Array(all) => all.iter_mut().for_each(|value| strip(value, key)),
        _ => {}
    }
}
