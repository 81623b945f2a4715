//! The kernel's structures as bytes (for `serde(with)`). kvm-bindings' own reading takes any number of bytes; here it must be
//! exactly as many as the structure has.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::BytesDeserializer;
use serde::de::{DeserializeOwned, Error, SeqAccess, Visitor};
use serde::{Deserializer, Serialize, Serializer};

pub fn serialize<T: Serialize, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    value.serialize(serializer)
}

pub fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_bytes(Exactly(PhantomData))
}

struct Exactly<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for Exactly<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", size_of::<T>())
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<T, E> {
        if bytes.len() != size_of::<T>() {
            return Err(E::invalid_length(bytes.len(), &self));
        }
        T::deserialize(BytesDeserializer::new(bytes))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<T, A::Error> {
        let mut bytes = Vec::with_capacity(size_of::<T>());
        while let Some(byte) = sequence.next_element()? {
            if bytes.len() == size_of::<T>() {
                return Err(A::Error::invalid_length(bytes.len() + 1, &self));
            }
            bytes.push(byte);
        }
        self.visit_bytes(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_debugregs;
    use serde::Deserialize;

    #[derive(Serialize, Deserialize)]
    struct Holder(#[serde(with = "super")] kvm_debugregs);

    use super::*;

    #[test]
    fn as_many_bytes_as_there_are_and_no_others() {
        let registers = kvm_debugregs { dr7: 0x400, ..Default::default() };
        let text = serde_json::to_string(&Holder(registers)).unwrap();
        assert_eq!(serde_json::from_str::<Holder>(&text).unwrap().0, registers);
        let bytes: Vec<u8> = serde_json::from_str(&text).unwrap();
        for wrong in [&bytes[1..], &[&bytes[..], &[0]].concat()] {
            let error = serde_json::from_value::<Holder>(serde_json::json!(wrong)).err().unwrap().to_string();
            assert_eq!(error, format!("invalid length {}, expected {} bytes", wrong.len(), bytes.len()));
        }
    }
}
