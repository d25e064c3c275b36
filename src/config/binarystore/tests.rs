//! Tests of the conversion, on files as they are found.

use proptest::prelude::*;

use super::*;
use crate::config::chain::PROVIDERS;
use crate::config::file;
use crate::config::keys::DEPOT;

/// The lines of the depot.toml that are no comments.
fn lines(converted: &Converted) -> Vec<&str> {
    converted.text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

fn of(xml: &str) -> Converted {
    convert(xml).unwrap()
}

#[track_caller]
fn tells(told: &[String], parts: &[&str]) {
    for part in parts {
        assert!(told.iter().any(|line| line.contains(part)), "{part} is missing in {told:#?}");
    }
}

/// The rows name keys that there are; a provider that is not there has none yet.
#[test]
fn every_row_leads_to_a_key() {
    let there = |provider: &str| PROVIDERS.iter().any(|known| known.name == provider);
    // A key that only a later part of a provider brings.
    let planned = ["sharding.max-balancing-run-time"];
    for row in table::ROWS {
        let Fate::Key(own, _) = row.fate else { continue };
        let key = format!("{}.{own}", row.provider);
        if there(row.provider) && !planned.contains(&&*key) {
            assert!(keys::find(DEPOT, &key).is_ok(), "{key}, of {}", row.name);
        }
    }
    let made = [
        "file-system.dir",
        "cache-fs.cache-provider-dir",
        "sharding.check-period",
        "sharding.shard[].dir",
        "s3-storage-v3.endpoint",
        "s3-storage-v3.region",
        "google-storage.endpoint",
        "azure-blob-storage.endpoint",
    ];
    for key in made {
        if there(key.split_once('.').unwrap().0) {
            assert!(DEPOT.iter().any(|known| known.name == key), "{key}");
        }
    }
    let row_of =
        |row: &Row| table::ROWS.iter().filter(|r| r.provider == row.provider && r.name == row.name).count();
    assert!(table::ROWS.iter().all(|row| row_of(row) == 1));
    for row in table::ROWS {
        assert!(table::KINDS.iter().any(|kind| kind.provider == Some(row.provider)), "{}", row.provider);
    }
    for template in table::TEMPLATES {
        for kind in template.chain {
            assert!(table::KINDS.iter().any(|known| known.name == *kind), "{kind}");
        }
        assert!(template.parameters.iter().all(|(step, _, _)| template.chain.contains(step)));
    }
}

#[test]
fn a_template_is_a_chain() {
    let converted = of("<config version=\"v1\"><chain template=\"file-system\"/></config>");
    assert_eq!(lines(&converted), ["template = \"file-system\""]);
    assert!(converted.lost.is_empty() && converted.problems.is_empty(), "{converted:?}");
    tells(&converted.notes, &["names no directory", "$JFROG_HOME"]);
    let converted = of(
        "<config version='2'><chain template='full-db-direct'/><!-- none --><provider id='blob' type='blob'/></config>",
    );
    assert_eq!(lines(&converted), ["template = \"full-db-direct\""]);
    tells(&converted.lost, &["copy it through Artifactory"]);
}

#[test]
fn blocks_override_by_id() {
    let xml = "<?xml version='1.0' encoding='UTF-8'?>
        <config version='4'>
          <chain template='redundant-shards'/>
          <provider id='shard-state-aware-1' type='state-aware'>
            <fileStoreDir> /mnt/a </fileStoreDir><zone>rack-1</zone><checkPeriod>20000</checkPeriod>
          </provider>
          <provider id='shard-state-aware-2' type='state-aware'>
            <baseDataDir>/mnt/b/</baseDataDir><writeEnabled>false</writeEnabled><checkPeriod>2e4</checkPeriod>
          </provider>
          <provider id='sharding' type='sharding'>
            <writeBehavior>percentageFreeSpace</writeBehavior><property name='x' value='y'/><oddity>1</oddity>
          </provider>
          <provider id='elsewhere' type='retry'><interval>1</interval></provider>
        </config>";
    let converted = of(xml);
    let text = converted.text.as_str();
    let (_, rest) = text.split_once("[sharding]\n").unwrap();
    let expected = "check-period = \"20s\"\nwrite-behavior = \"percentage-free-space\"\n";
    for line in expected.lines().chain(["redundancy = 2", "lenient-limit = 1"]) {
        assert!(rest.lines().any(|l| l == line), "{line} is missing in {rest}");
    }
    assert!(rest.contains("[[sharding.shard]]\ndir = \"/mnt/a\"\nzone = \"rack-1\"\n"), "{rest}");
    assert!(
        rest.contains("[[sharding.shard]]\ndir = \"/mnt/b/filestore\"\nwrite-enabled = false\n"),
        "{rest}"
    );
    tells(
        &converted.lost,
        &["property x of provider sharding", "oddity of provider sharding: the parameter is not known"],
    );
    tells(&converted.notes, &["elsewhere", "Artifactory's own directory"]);
    assert_eq!(converted.lost.len(), 2, "{:?}", converted.lost);
}

/// The whole file is one that a depot takes, as far as the chain is one of this program's.
#[test]
fn what_is_written_is_read_again() {
    let xml = "<config version='v1'><chain>
          <provider id='sharding' type='sharding'>
            <redundancy>2</redundancy>
            <sub-provider id='one' type='state-aware'/><sub-provider id='two' type='state-aware'/>
          </provider></chain>
        <provider id='one' type='state-aware'><fileStoreDir>/mnt/a\"b</fileStoreDir></provider>
        <provider id='two' type='state-aware'><fileStoreDir>/mnt/c</fileStoreDir></provider></config>";
    let converted = of(xml);
    assert!(converted.problems.is_empty() && converted.lost.is_empty(), "{converted:?}");
    let (values, problems) = file::read(DEPOT, &converted.text).unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(values.get("sharding.shard[0].dir"), Some("/mnt/a\"b"));
    // Artifactory makes all copies where nobody says otherwise.
    assert_eq!(values.get("sharding.lenient-limit"), Some("0"));
    assert!(converted.text.contains("# Artifactory's default.\nlenient-limit = 0"), "{}", converted.text);
}

#[test]
fn a_chain_of_an_object_store_keeps_its_order() {
    let xml = "<config version='2'><chain template='s3-storage-v3'/>
        <provider id='cache-fs' type='cache-fs'>
          <maxCacheSize>5e+10</maxCacheSize><cacheProviderDir>/ssd/cache</cacheProviderDir>
        </provider>
        <provider id='eventual' type='eventual'><numberOfThreads>8</numberOfThreads><queueSize>9</queueSize></provider>
        <provider id='s3-storage-v3' type='s3-storage-v3'>
          <endpoint>minio.example.com</endpoint><port>9000</port><useHttp>true</useHttp>
          <bucketName>blobs</bucketName><identity>${S3_USER}</identity><credential>hush &amp; hush</credential>
          <multiPartLimit>2e8</multiPartLimit><crtThing>1</crtThing><proxyHost>p</proxyHost>
        </provider></config>";
    let converted = of(xml);
    let told = lines(&converted);
    let chain = told[0];
    assert!(
        chain.contains("\"cache-fs\", \"eventual\", \"retry\", \"s3-storage-v3\"")
            || chain.contains("template")
    );
    for line in [
        "max-cache-size = \"50GB\"",
        "cache-provider-dir = \"/ssd/cache\"",
        "number-of-threads = 8",
        "endpoint = \"http://minio.example.com:9000\"",
        "bucket-name = \"blobs\"",
        "identity = \"${S3_USER}\"",
        "credential = \"hush & hush\"",
        "multipart-limit = \"200MB\"",
    ] {
        assert!(told.contains(&line), "{line} is missing in {told:#?}");
    }
    assert!(converted.text.contains("better \"${S3_STORAGE_V3_CREDENTIAL}\""), "{}", converted.text);
    assert!(!converted.text.contains("S3_STORAGE_V3_IDENTITY"));
    tells(&converted.notes, &["queueSize", "crtThing", "is a secret in plain text"]);
    tells(&converted.lost, &["proxyHost"]);
    assert!(converted.notes.iter().chain(&converted.lost).all(|line| !line.contains("hush")));
}

#[test]
fn amazons_own_endpoint_is_a_region() {
    let with = |endpoint: &str| {
        let xml = format!(
            "<config><chain template='s3-storage-v3-direct'/><provider id='s3-storage-v3' type='s3-storage-v3'>\
             <endpoint>{endpoint}</endpoint></provider></config>"
        );
        of(&xml).text
    };
    assert!(!with("s3.amazonaws.com").contains("endpoint =") && !with("s3.amazonaws.com").contains("region"));
    assert!(with("https://s3.eu-west-1.amazonaws.com/").contains("region = \"eu-west-1\""));
    let google = of("<config><chain template='google-storage-v2-direct'/><provider id='google-storage-v2'>\
        <endpoint>storage.googleapis.com</endpoint><bucketName>b</bucketName></provider></config>");
    assert!(!google.text.contains("endpoint ="), "{}", google.text);
    tells(&google.lost, &["gcp.credentials.json"]);
    assert!(with("s3.local").contains("endpoint = \"https://s3.local\""));
}

#[test]
fn what_has_no_counterpart_is_named_with_what_to_do() {
    for (chain, parts) in [
        ("<provider id='a' type='hdfs'/>", &["(hdfs): there is no provider for HDFS"][..]),
        (
            "<provider id='s' type='sharding'><sub-provider id='b' type='state-aware-s3'/></provider>",
            &["shard provider b"],
        ),
        (
            "<provider id='c' type='cache-fs'><provider id='x' type='sharding-cluster'>\
             <sub-provider id='y' type='state-aware'/><dynamic-provider id='z' type='remote'/></provider></provider>",
            &["other nodes", "dynamic-provider remote"],
        ),
        ("<provider id='a' type='eventula'/>", &["type is not known; the nearest known one is \"eventual\""]),
        (
            "<provider id='a' type='double'><provider id='b' type='file-system'/><provider id='c' type='blob'/></provider>",
            &["two directories with redundancy 2", "provider c (blob): only the first"],
        ),
    ] {
        let converted = of(&format!("<config><chain>{chain}</chain></config>"));
        tells(&converted.lost, parts);
        for lost in &converted.lost {
            assert!(converted.text.contains(&format!("# - {lost}\n")), "{}", converted.text);
        }
    }
    let converted = of("<config><chain template='cluster-file-system'/></config>");
    assert!(lines(&converted)[0].contains("cache-fs"), "{}", converted.text);
    // No chain that cannot keep blobs passes for one that can.
    let converted = of("<config><chain><provider id='a' type='hdfs'/></chain></config>");
    assert!(converted.problems.iter().any(|problem| problem.key == "chain"), "{:?}", converted.problems);
}

#[test]
fn a_file_without_a_chain_is_an_error() {
    for (xml, part) in [
        ("", "not XML"),
        ("<config>", "not XML"),
        ("<chain/>", "not <config>"),
        ("<config/>", "no <chain>"),
        ("<config><chain/></config>", "neither a template nor providers"),
        ("<config><chain template='redundant-shrads'/></config>", "\"redundant-shards\""),
        ("<!DOCTYPE a [<!ENTITY b \"c\">]><config><chain template='file-system'/></config>", "DTD"),
    ] {
        let why = convert(xml).unwrap_err();
        assert!(why.contains(part), "{xml}: {why}");
    }
}

#[test]
fn wrong_values_are_lost_with_the_reason() {
    let xml = "<config><chain template='cache-fs'/><provider id='cache-fs' type='cache-fs'>
        <maxCacheSize>lots</maxCacheSize><skipDuringUpload>perhaps</skipDuringUpload></provider>
        <provider id='file-system' type='file-system'><fileStoreDir>blobs</fileStoreDir></provider></config>";
    tells(
        &of(xml).lost,
        &["\"lots\" is not a whole number", "\"perhaps\" is not true or false", "write the whole path"],
    );
}

/// Text that is nearly a binarystore.xml.
fn nearly() -> impl Strategy<Value = String> {
    let pieces = vec![
        "<config>",
        "</config>",
        "<chain>",
        "</chain>",
        "<chain template='s3-storage-v3'/>",
        "<chain template='double-shards'/>",
        "<provider id='a' type='sharding'>",
        "<provider type='cache-fs'>",
        "<provider id='s3-storage-v3' type='s3-storage-v3'>",
        "</provider>",
        "<sub-provider id='b' type='state-aware'>",
        "</sub-provider>",
        "<dynamic-provider/>",
        "<endpoint>http://:/</endpoint>",
        "<port>x</port>",
        "<port>1</port>",
        "<credential>${",
        "</credential>",
        "${X}",
        "<redundancy>1e99</redundancy>",
        "<redundancy>-1</redundancy>",
        "<fileStoreDir>a\u{1f}b</fileStoreDir>",
        "&#10;",
        "<fileStoreDir>/a'\"&#10;b</fileStoreDir>",
        "<property name='&#10;x'/>",
        "<a><b/></a>",
        "é",
        "&amp;",
        "<![CDATA[x]]>",
    ];
    proptest::collection::vec(proptest::sample::select(pieces), 0..25).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn what_is_nearly_xml_makes_toml_or_an_error(inside in nearly(), wrapped: bool) {
        let xml = if wrapped { format!("<config><chain template='redundant-shards'/>{inside}</config>") } else { inside };
        if let Ok(converted) = convert(&xml) {
            prop_assert!(file::read(DEPOT, &converted.text).is_ok(), "{}", converted.text);
        }
    }

    #[test]
    fn any_parameter_makes_toml(name in "[a-zA-Z]{1,12}", value in "\\PC{0,20}", at in 0..table::ROWS.len(), known: bool) {
        let row = &table::ROWS[at];
        let name = if known { row.name } else { &name };
        let value = value.replace(['<', '&', ']'], "$");
        let kind = table::KINDS.iter().find(|kind| kind.provider == Some(row.provider)).unwrap().name;
        let xml = format!("<config><chain><provider id='{kind}' type='{kind}'><{name}>{value}</{name}></provider></chain></config>");
        if let Ok(converted) = convert(&xml) {
            prop_assert!(file::read(DEPOT, &converted.text).is_ok(), "{}", converted.text);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,60}") {
        let _ = convert(&text);
    }
}
