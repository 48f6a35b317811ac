//! Between sites under TLS: who is believed, and who is let in.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use baton::postgres;
use baton::postgres::replication::{
    self, ProbeError, Replication, Serving, Shown, Source, name_of,
};
use rcgen::{CertificateParams, KeyPair};

use crate::harness::{
    LONG, Site, block_on, licence, replica, replication as settings, seeding, started_by,
};

/// A certificate of its own for this name, and its key; returns the certificate's file.
fn certificate(site: &Site, file: &str, name: &str) -> PathBuf {
    let key = KeyPair::generate().unwrap();
    let parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let made = parameters.self_signed(&key).unwrap();
    let write = |name: &str, text: String| {
        let path = site.directory.path().join(name);
        fs::write(&path, text).unwrap();
        let user = &site.instance.user;
        chown(&path, Some(user.uid), Some(user.gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    write(&format!("{file}.key"), key.serialize_pem());
    write(&format!("{file}.crt"), made.pem())
}

fn with(source: &Source, sslmode: &str, root: Option<&Path>) -> Source {
    Source {
        sslmode: sslmode.to_owned(),
        root_certificate: root.map(Path::to_owned),
        ..source.clone()
    }
}

#[test]
fn sslmode_is_what_it_is_to_libpq() {
    block_on(async {
        let (mut a, b) = (Site::new("a"), Site::new("b"));
        let right = certificate(&a, "right", "127.0.0.1");
        let wrong = certificate(&a, "wrong", "127.0.0.1");
        let elsewhere = certificate(&a, "elsewhere", "elsewhere.example");
        let ssl = |a: &mut Site, file: &str| {
            let path = |end| a.directory.path().join(format!("{file}.{end}"));
            let [cert, key] = ["crt", "key"].map(|end| path(end).display().to_string());
            let set = [
                ("ssl", "on".to_owned()),
                ("ssl_cert_file", cert),
                ("ssl_key_file", key),
            ];
            let set = set.map(|(name, value)| (name.to_owned(), value));
            a.instance.parameters.extend(set);
        };
        ssl(&mut a, "right");
        postgres::initdb(&licence(), &a.instance).unwrap();
        let serving = Serving::Primary {
            names: String::new(),
            replication: Replication {
                require_tls: true,
                ..settings()
            },
        };
        let at_a = a.start(&serving).await;
        a.offer(&at_a, &[&b]).await;
        let source = a.source_for(&b);
        let slot = name_of("b");
        let cases = [
            ("disable", None, false),
            ("prefer", None, true),
            ("require", None, true),
            ("require", Some(&wrong), false),
            ("verify-ca", Some(&right), true),
            ("verify-ca", Some(&wrong), false),
            ("verify-full", Some(&right), true),
            ("verify-full", Some(&wrong), false),
        ];
        for (mode, root, let_in) in cases {
            let source = with(&source, mode, root.map(PathBuf::as_path));
            let probe = replication::probe(&source, &slot, LONG).await;
            assert_eq!(probe.is_ok(), let_in, "{mode} {root:?}: {probe:?}");
        }
        let refused = replication::probe(&with(&source, "disable", None), &slot, LONG).await;
        assert!(
            matches!(refused, Err(ProbeError::Rejected { .. })),
            "{refused:?}"
        );

        // libpq by the same settings: a base backup and a replica.
        let source = with(&source, "verify-full", Some(&right));
        let progress = Shown::new(None);
        let (licence, by) = (licence(), started_by());
        let wanted = seeding(&source, &progress);
        let made = replication::basebackup(&licence, &b.instance, &by, &wanted).await;
        made.unwrap_or_else(|error| panic!("{error:?}"));
        let at_b = b.start(&replica(Some(source.clone()))).await;
        at_b.until("it receives", |facts| facts.heard.is_some())
            .await;
        at_b.stop().await;
        at_a.stop().await;

        // A certificate that is for another name.
        ssl(&mut a, "elsewhere");
        let at_a = a.start(&serving).await;
        for (mode, let_in) in [("verify-ca", true), ("verify-full", false)] {
            let source = with(&source, mode, Some(&elsewhere));
            let probe = replication::probe(&source, &slot, LONG).await;
            assert_eq!(probe.is_ok(), let_in, "{mode}: {probe:?}");
        }
        at_a.stop().await;
    });
}
