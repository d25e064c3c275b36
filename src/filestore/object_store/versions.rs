//! Earlier versions of objects, in a bucket of S3 that keeps them: what was deleted or overwritten by mistake comes back.
//!
//! The client has no request for them, so the one that lists them is made and signed here.

use std::future::poll_fn;
use std::sync::Arc;

use ::object_store::aws::{AmazonS3, AwsAuthorizer};
use ::object_store::client::{HttpClient, HttpRequest, HttpRequestBody};
use ::object_store::path::Path as Key;
use tokio::time::Instant;

use super::super::error::{Error, Result};
use super::calls::{Server, Trouble, within};

/// More than the versions of one object ever take.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// How to ask for versions.
#[derive(Debug)]
pub(super) struct Versions {
    pub(super) s3: Arc<AmazonS3>,
    pub(super) client: HttpClient,
    /// Address of the bucket.
    pub(super) address: String,
    pub(super) region: String,
}

impl Versions {
    /// The ids of the versions of an object that have so many bytes, newest first.
    pub(super) fn of(&self, server: &Server, key: &Key, size: u64) -> Result<Vec<String>> {
        let request = server.request("list the versions of", key);
        let text = server.wait(server.converse(&request, self.listing(server, key)))?;
        let unreadable = |why: String| Error::Backend {
            doing: request.doing,
            what: request.what.clone(),
            transient: false,
            source: why.into(),
        };
        ids(&text, key.as_ref(), size).map_err(unreadable)
    }

    async fn listing(&self, server: &Server, key: &Key) -> std::result::Result<String, Trouble> {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        let prefix = key.as_ref().replace('/', "%2F");
        let address = format!("{}?prefix={prefix}&versions=", self.address);
        *request.uri_mut() = address.parse().map_err(failed)?;
        let credential = within(server.patience(0), self.s3.credentials().get_credential()).await?;
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(&mut request, None)
            .map_err(Trouble::Said)?;
        let asked = async { self.client.execute(request).await.map_err(generic) };
        let answer = within(server.patience(0), asked).await?;
        let status = answer.status();
        let (mut pieces, mut bytes) = (answer.into_body().bytes_stream(), Vec::new());
        let begun = Instant::now();
        loop {
            server.must_be_in_time(begun, ANSWER_BYTES_MAX as u64)?;
            let next = async {
                poll_fn(|context| pieces.as_mut().poll_next(context)).await.transpose().map_err(generic)
            };
            match within(server.patience(0), next).await? {
                Some(piece) if bytes.len() + piece.len() <= ANSWER_BYTES_MAX => {
                    bytes.extend_from_slice(&piece);
                }
                Some(_) => return Err(failed("the answer is too long".to_owned())),
                None => break,
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match status.is_success() {
            true => Ok(text),
            false => Err(failed(format!("the server answered with status {status}: {text}"))),
        }
    }
}

fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ::object_store::Error {
    ::object_store::Error::Generic { store: "S3", source: source.into() }
}

fn failed(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Trouble {
    Trouble::Said(generic(source))
}

/// The versions that an answer lists, newest first as the server gives them.
fn ids(text: &str, key: &str, size: u64) -> std::result::Result<Vec<String>, String> {
    let document = roxmltree::Document::parse(text)
        .map_err(|error| format!("the answer is no list of versions: {error}"))?;
    // By its name, whichever name space the server uses.
    let is = |node: &roxmltree::Node<'_, '_>, name: &str| node.tag_name().name() == name;
    let versions = document.root_element().children().filter(|node| is(node, "Version"));
    let of = |version: roxmltree::Node<'_, '_>| {
        let part = |name: &str| version.children().find(|node| is(node, name))?.text();
        let fits = part("Key") == Some(key) && part("Size").and_then(|n| n.parse().ok()) == Some(size);
        part("VersionId").filter(|_| fits).map(str::to_owned)
    };
    Ok(versions.filter_map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_of_one_object_and_size_are_told() {
        let version = |key, id, size| {
            format!("<Version><Key>{key}</Key><VersionId>{id}</VersionId><Size>{size}</Size></Version>")
        };
        let text = format!(
            "<ListVersionsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><DeleteMarker><Key>a</Key>\
             <VersionId>9</VersionId></DeleteMarker>{}{}{}{}</ListVersionsResult>",
            version("a", 3, 5),
            version("a", 2, 6),
            version("ab", 7, 5),
            version("a", 1, 5)
        );
        assert_eq!(ids(&text, "a", 5).unwrap(), ["3", "1"]);
        assert_eq!(ids(&text, "b", 5).unwrap(), [""; 0]);
        assert!(ids("hello", "a", 5).unwrap_err().contains("no list of versions"));
    }
}
