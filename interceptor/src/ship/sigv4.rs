//! Requests signed as S3 and its kin ask for: AWS Signature Version 4, as
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html> has it.

use std::fmt::Write as _;

use aws_lc_rs::{digest, hmac};
use interceptor_core::record::Timestamp;

/// What stands in the request's line and headers, as far as it is signed.
#[derive(Debug)]
pub(super) struct Signed<'a> {
    pub(super) method: &'a str,
    /// Encoded, as it is sent.
    pub(super) path: &'a str,
    /// Encoded, by name; empty where there is none.
    pub(super) query: &'a str,
    /// Names in lower case with values, `host` and `x-amz-date` among them.
    pub(super) headers: &'a [(&'a str, &'a str)],
    /// SHA-256 of the body, in hexadecimal.
    pub(super) payload: &'a str,
}

/// Whose signature it is.
#[derive(Clone, Copy)]
pub(super) struct Signer<'a> {
    pub(super) access_key: &'a str,
    pub(super) secret_key: &'a [u8],
    pub(super) region: &'a str,
}

impl Signer<'_> {
    /// The `Authorization` of `request`, sent at `date`, as [`date`] gives it.
    pub(super) fn authorization(&self, request: &Signed<'_>, date: &str) -> String {
        let mut headers = request.headers.to_vec();
        headers.sort_unstable();
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let mut canonical = format!("{}\n{}\n{}\n", request.method, request.path, request.query);
        for (name, value) in &headers {
            // Writing to a string can't fail.
            _ = writeln!(canonical, "{name}:{}", value.trim());
        }
        _ = write!(canonical, "\n{names}\n{}", request.payload);
        let day = date.get(..8).unwrap_or(date);
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let hash = digest::digest(&digest::SHA256, canonical.as_bytes());
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex::encode(hash));
        let secret = zeroize::Zeroizing::new([b"AWS4", self.secret_key].concat());
        let key = ["s3", "aws4_request"]
            .iter()
            .fold(mac(mac(&secret, day).as_ref(), self.region), |key, part| {
                mac(key.as_ref(), part)
            });
        let signature = hex::encode(mac(key.as_ref(), &text));
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}",
            self.access_key
        )
    }
}

/// `time` as requests have it, `20130524T000000Z`.
pub(super) fn date(time: Timestamp) -> String {
    let mut date = seconds(time);
    date.retain(|character| !matches!(character, '-' | ':'));
    date
}

/// `time` to the second, as RFC 3339 has it.
pub(super) fn seconds(time: Timestamp) -> String {
    let mut text = time.to_string();
    if let Some(whole) = text.find('.') {
        text.truncate(whole);
        text.push('Z');
    }
    text
}

fn mac(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const HOST: (&str, &str) = ("host", "examplebucket.s3.amazonaws.com");
    const DATE: (&str, &str) = ("x-amz-date", "20130524T000000Z");

    fn signature(
        method: &str,
        path: &str,
        query: &str,
        more: &[(&str, &str)],
        body: &str,
    ) -> String {
        let mut headers = vec![HOST, DATE, ("x-amz-content-sha256", body)];
        headers.extend_from_slice(more);
        let request = Signed {
            method,
            path,
            query,
            headers: &headers,
            payload: body,
        };
        let signer = Signer {
            access_key: "AKIAIOSFODNN7EXAMPLE",
            secret_key: b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            region: "us-east-1",
        };
        let whole = signer.authorization(&request, DATE.1);
        whole.rsplit_once('=').unwrap().1.to_owned()
    }

    #[test]
    fn the_examples_that_aws_publishes_come_out_as_they_do_there() {
        assert_eq!(
            signature("GET", "/test.txt", "", &[("range", "bytes=0-9")], EMPTY),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        assert_eq!(
            signature(
                "PUT",
                "/test%24file.text",
                "",
                &[
                    ("date", "Fri, 24 May 2013 00:00:00 GMT"),
                    ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
                ],
                "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
            ),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
        );
        assert_eq!(
            signature("GET", "/", "lifecycle=", &[], EMPTY),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
        assert_eq!(
            signature("GET", "/", "max-keys=2&prefix=J", &[], EMPTY),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
    }

    #[test]
    fn times_are_to_the_second() {
        let time = Timestamp(1_369_353_600_987_654_321);
        assert_eq!(date(time), "20130524T000000Z");
        assert_eq!(seconds(time), "2013-05-24T00:00:00Z");
    }
}
