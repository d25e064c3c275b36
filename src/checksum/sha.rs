//! SHA-1 and SHA-256 by the fastest code that measurement found (docs/benchmarks.md): the assembly of AWS-LC on the processors
//! it is written for, with and without SHA extensions; portable Rust everywhere else.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub use assembly::{Sha1, Sha256};
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub use {sha1::Sha1, sha2::Sha256};

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod assembly {
    use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
    use sha1::digest::typenum::{U20, U32};
    use sha1::digest::{FixedOutput, HashMarker, Output, OutputSizeUser, Update};

    /// A hash of AWS-LC behind the traits of the other hashes.
    macro_rules! hash {
        ($(#[$doc:meta])* $name:ident, $algorithm:expr, $bytes:ty) => {
            $(#[$doc])*
            #[derive(Clone)]
            pub struct $name(Context);

            impl Default for $name {
                fn default() -> $name {
                    $name(Context::new($algorithm))
                }
            }

            impl Update for $name {
                fn update(&mut self, bytes: &[u8]) {
                    self.0.update(bytes);
                }
            }

            impl OutputSizeUser for $name {
                type OutputSize = $bytes;
            }

            impl FixedOutput for $name {
                fn finalize_into(self, out: &mut Output<$name>) {
                    out.copy_from_slice(self.0.finish().as_ref());
                }
            }

            impl HashMarker for $name {}
        };
    }

    hash!(
        /// SHA-1: 20 bytes.
        Sha1, &SHA1_FOR_LEGACY_USE_ONLY, U20
    );
    hash!(
        /// SHA-256: 32 bytes.
        Sha256, &SHA256, U32
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha1::Digest;

    proptest! {
        #[test]
        fn they_are_what_the_portable_ones_are(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..9)) {
            let (mut sha1, mut sha256) = (super::Sha1::new(), super::Sha256::new());
            for part in &parts {
                sha1.update(part);
                sha256.update(part);
            }
            let whole = parts.concat();
            prop_assert_eq!(sha1.finalize(), sha1::Sha1::digest(&whole));
            prop_assert_eq!(sha256.finalize(), sha2::Sha256::digest(&whole));
        }
    }
}
