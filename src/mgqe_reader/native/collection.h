// The folder of a collection: a manifest that names the file of the table and the file of the ids.
#ifndef MGQE_COLLECTION_H
#define MGQE_COLLECTION_H

#include <string>

#include "container.h"

constexpr char kManifest[] = "mgqe-collection.json";

struct CollectionFiles {
    std::string table;
    std::string ids;  // empty: rows have no ids of their own
};

// The paths of both, each with the checksum that the manifest was saved with.
CollectionFiles read_manifest(const std::string& folder);

#endif
