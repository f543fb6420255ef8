// What mgqe_ids points to.
#ifndef MGQE_IDS_HANDLE_H
#define MGQE_IDS_HANDLE_H

#include "id_map.h"

struct mgqe_ids {
    IdMap map;

    mgqe_ids(const std::string& path, const Reading& reading) : map(path, reading) {}
};

#endif
