//! How to trust our authority, in words, for whoever received its certificate. It tells; it installs nothing.

/// One way for each kind of machine. `file` is the certificate as it is called there, `domain` what it may
/// sign for, `fingerprint` what to compare first.
pub fn words(file: &str, domain: &str, fingerprint: &str) -> String {
    let ways = WAYS
        .map(|(who, how)| format!("{who}\n    {}\n", how.replace("THE_CERT", file).replace('\n', "\n    ")));
    format!(
        "{file} lets a machine recognise https://*.{domain}, and nothing else.\n\
         Before trusting it, compare its SHA-256 fingerprint with the one that the server printed:\n    \
         {fingerprint}\n    openssl x509 -in {file} -noout -fingerprint -sha256\n\n{}",
        ways.join("\n")
    )
}

const WAYS: [(&str, &str); 7] = [
    (
        "Debian, Ubuntu",
        "sudo cp THE_CERT /usr/local/share/ca-certificates/echoes-appliance.crt && sudo update-ca-certificates",
    ),
    (
        "Fedora, RHEL",
        "sudo cp THE_CERT /etc/pki/ca-trust/source/anchors/echoes-appliance.crt && sudo update-ca-trust",
    ),
    (
        "macOS",
        "sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain THE_CERT",
    ),
    (
        "Windows (PowerShell as administrator)",
        "Import-Certificate -FilePath THE_CERT -CertStoreLocation Cert:\\LocalMachine\\Root",
    ),
    (
        "Firefox",
        "Settings, Privacy & Security, View Certificates, Authorities, Import: THE_CERT, for web sites",
    ),
    (
        "Chrome, Chromium on Linux (certutil is in libnss3-tools)",
        "certutil -A -d sql:$HOME/.pki/nssdb -n echoes-appliance -t C,, -i THE_CERT",
    ),
    (
        "Python: requests and the MLflow client, this HQ only; then requests and everything, public sites too",
        "export MLFLOW_TRACKING_SERVER_CERT_PATH=$PWD/THE_CERT\n\
         cat \"$(python3 -m certifi)\" THE_CERT > all.pem && export REQUESTS_CA_BUNDLE=$PWD/all.pem SSL_CERT_FILE=$PWD/all.pem",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_names_the_file_and_nothing_is_left_to_fill_in() {
        let text = words("hq-ca.crt", "example.org", "AB:CD");
        assert!(text.starts_with("hq-ca.crt lets a machine recognise https://*.example.org"), "{text}");
        assert!(!text.contains("THE_CERT"), "{text}");
        for (who, _) in WAYS {
            let way = text.split(&format!("{who}\n")).nth(1).unwrap();
            assert!(way.split("\n\n").next().unwrap().contains("hq-ca.crt"), "{who}");
        }
    }
}
