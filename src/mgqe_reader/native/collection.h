// The folder of a collection: a manifest that names the file of the table and the file of the ids.
#ifndef MGQE_COLLECTION_H
#define MGQE_COLLECTION_H

#include <string>
#include <vector>

#include "container.h"

constexpr char kManifest[] = "mgqe-collection.json";

struct CollectionFiles {
    std::string table;
    std::string ids;                  // empty: rows have no ids of their own
    std::vector<float> query_weight;  // empty, or (d) what each coordinate counts in inner products
};

// The paths of the files, each with the checksum that the manifest was saved with.
CollectionFiles read_manifest(const std::string& folder);

#endif
