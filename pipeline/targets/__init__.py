"""The target cache: manifest, encodings, layouts, writer, order, reader, certificate."""
